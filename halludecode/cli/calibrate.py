"""``calibrate``: what a strategy must know of a model before it can run there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import json_document, memory_advice
from halludecode.core.artifact import PIN
from halludecode.core.errors import InvalidParameter
from halludecode.core.registry import STRATEGIES
from halludecode.testbed.assets import MODELS

if TYPE_CHECKING:
    from halludecode.core.artifact import Artifact
    from halludecode.core.strategy import Strategy


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.CALIBRATE)(calibrate)


def calibrate(
    strategy: Annotated[str, typer.Argument(help="Such as zerotuning, lacing or var(tau=3).")],
    model: Annotated[str, typer.Option(help="Hub id, folder, or testbed.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="testbed-dev-iid, a folder with pope/ or annotations/, or a data set id; for vti "
            "the annotations are pairs of captions, or made of COCO's; for adaiat they are the "
            "samples.jsonl of a run of chair."
        ),
    ] = None,
    images: options.SampleImages = None,
    annotations: options.SampleAnnotations = None,
    prompt_preset: options.SamplePreset = None,
    limit: Annotated[int, typer.Option(min=1, help="First N pictures of each source.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of trained artifacts.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep it in; by default the user's own.")
    ] = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    json: options.Json = False,
) -> None:
    """Make a strategy's artifact for a model: sink dimensions, head maps, soft prompts.

    An artifact is named by its content and used only where a spec names its strategy.
    """
    settings = dict(locals())  # the options alone: nothing else is a local yet
    from halludecode.analysis.calibration_samples import samples
    from halludecode.calibration.store import ArtifactStore
    from halludecode.core.spec import parse
    from halludecode.evals.runner.batching import threads_for

    parts = parse(strategy)
    _check(parts)
    arguments = {**options.engine_arguments(settings), "artifacts": out}
    load = options.loader(model, "hf", arguments)
    sources = data or (["testbed-dev-iid"] if model in MODELS and annotations is None else [])
    names = ", ".join(Path(each).name for each in (*sources, annotations) if each)
    pairs = None  # the engine's own eight prompts
    if sources or images is not None or annotations is not None:
        words = {"prompt_preset": prompt_preset, "limit": limit, "kind": parts[0].samples}
        pairs = samples(model, sources, images, annotations, **words)
    with json_document(json) as documents, memory_advice(batch_size):
        engine = load()
        with threads_for(model):
            artifact = engine.calibrate(parts[0], pairs, source=names, seed=seed, progress=True)
        path = ArtifactStore(out).path(artifact)
        documents.append({"strategy": artifact.strategy, "path": path, **artifact.describe()})
    if not json:
        sys.stdout.write("\n".join(_lines(artifact, path, strategy, out)) + "\n")


def _check(parts: tuple[Strategy, ...]) -> None:
    """Bad input first: it should not cost the time of loading a model."""
    if len(parts) != 1 or not parts[0].declares("calibrate"):
        able = ", ".join(cls.name for cls in STRATEGIES if cls.declares("calibrate"))
        names = "+".join(part.name for part in parts)
        raise InvalidParameter(f"{names}: give one strategy that can be calibrated: {able}.")


def _lines(artifact: Artifact, path: Path, spec: str, out: Path | None) -> list[str]:
    """What was made, of what, where it is, and how to use it."""
    from halludecode.calibration.store import VARIABLE

    shapes = ", ".join(
        f"{name} {'x'.join(map(str, value.shape)) or f'{value.item():g}'}"
        for name, value in artifact.items()
    )
    where = f"{VARIABLE}={out} " if out is not None else ""
    lines = [
        f"{artifact.strategy}: {'; '.join(artifact.notes) or shapes}",
        f"from {artifact.source}",
        f"saved {path}",
        f'use it: {where}halludecode eval --strategy "{spec}" ...',
    ]
    if any(param.name == PIN for param in STRATEGIES.get(artifact.strategy).params()):
        lines.append(f'use this very one: --strategy "{artifact.strategy}(pin={artifact.name})"')
    return lines
