"""``sweep``: which parameters, chosen on some pictures and reported on others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.config import merge
from halludecode.cli.evaluation import arguments, loader
from halludecode.cli.output import fail, json_document, memory_advice, note, show
from halludecode.core.errors import InvalidParameter


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.SWEEP)(sweep)


def sweep(
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="With braces: vcd(alpha={0.1..2:10}, beta={0.05,0.1}); repeat."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder, or testbed.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Benchmarks, as for eval.")] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(
            help="Data that settings are chosen on, or a share of --data's pictures such as 0.3; "
            "default testbed-dev-iid for testbed-iid, and so on."
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data that the chosen one is reported on.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What is chosen by: METRIC, or TASK.METRIC; default the first headline."),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the pictures.")] = None,
    annotations: Annotated[str | None, typer.Option(help="Question file, as for eval.")] = None,
    prompt_preset: options.PromptPreset = None,
    columns: options.Columns = None,
    engine: options.EngineName = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N pictures of each source and task.")
    ] = None,
    batch_size: options.BatchSize = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run (default 0).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 (default) is greedy.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens, in place of the preset's.")
    ] = None,
    answers: options.Answers = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the sweep; resumed if it exists.")
    ] = None,
    fresh: Annotated[bool | None, typer.Option("--fresh", help="Start over.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with options of eval, which these share.")
    ] = None,
    json: options.Json = False,
) -> int:
    """Try parameters: the best on development pictures is reported, once, on others.

    Settings that share rows share their passes.
    """
    own = ("dev", "metric", "config", "json")
    flags = {k: v for k, v in locals().items() if k not in (*own, "own")}
    run = merge(flags, config)
    for name in ("tasks", "strategy", "model", "output"):
        if not run[name]:
            raise InvalidParameter(f"sweep needs --{name} (or {name} in a --config file).")
    from halludecode.evals.sweep.run import run_sweep
    from halludecode.evals.sweep.table import sweep_tables

    folder = Path(run["output"])
    with json_document(json) as documents, memory_advice(run["batch_size"]):
        found = run_sweep(
            loader(run),
            **arguments(run),
            dev=tuple(dev or ()),
            metric=metric,
            output=folder,
            fresh=bool(run["fresh"]),
        )
        documents.append(found)
    if not json:
        show(sweep_tables(found))
    if found["failed"]:
        fail(f"{found['failed']} samples failed; see errors.jsonl in {folder}/dev and /test")
        return 1
    note(f"saved in {folder}; again: halludecode eval --config {folder / 'best.yaml'} --output DIR")
    return 0
