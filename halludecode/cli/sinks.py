"""``sinks``: which tokens of a model are attention sinks, with a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import json_document, memory_advice
from halludecode.core.errors import InvalidParameter
from halludecode.testbed.assets import MODELS


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.SINKS)(sinks)


def sinks(
    model: Annotated[str, typer.Option(help="Hub id, folder, testbed or testbed-planted.")],
    output: Annotated[Path, typer.Option(help="Folder for sinks.json and sinks.png.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="testbed-dev-iid, a folder with pope/ or annotations/, or a data set id; without "
            "one, eight built-in prompts."
        ),
    ] = None,
    images: options.SampleImages = None,
    annotations: options.SampleAnnotations = None,
    prompt_preset: options.SamplePreset = None,
    limit: Annotated[int, typer.Option(min=1, help="First N pictures of each source.")] = 10,
    tau: Annotated[
        float | None, typer.Option(help="Threshold; default 20 * sqrt(width / 4096).")
    ] = None,
    engine: options.EngineName = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    json: options.Json = False,
) -> None:
    """Find a model's attention sinks: dimensions, tokens, the attention they take; draw them.

    `calibrate --model M var` keeps the dimensions for var.
    """
    settings = dict(locals())  # the options alone: nothing else is a local yet
    if tau is not None and not tau > 0:
        raise InvalidParameter(f"--tau {tau:g}: it must be above 0.")
    load = options.loader(model, engine, options.engine_arguments(settings))

    from halludecode.analysis.calibration_samples import samples

    default_data = ["testbed-dev-iid"] if model in MODELS and annotations is None else []
    sources = data or default_data
    names = ", ".join(Path(each).name for each in (*sources, annotations) if each)
    pairs = None  # the built-in prompts
    if sources or images is not None or annotations is not None:
        words = {"prompt_preset": prompt_preset, "limit": limit}
        pairs = samples(model, sources, images, annotations, **words)

    from halludecode.analysis import sinks as analysis
    from halludecode.evals.runner.batching import threads_for

    with json_document(json) as documents, memory_advice(1):
        loaded = load()
        with threads_for(model):
            report = analysis.sinks(loaded, pairs, tau=tau, source=names, progress=True)
        saved = report.save(output)
        documents.append(report.as_dict() | {"saved": [str(path) for path in saved]})
    if not json:
        lines = [report.verdict, f"from {report.source}", *(f"saved {path}" for path in saved)]
        if report.dims:
            lines.append(f"keep them for var: halludecode calibrate --model {model} var")
        sys.stdout.write("\n".join(lines) + "\n")
