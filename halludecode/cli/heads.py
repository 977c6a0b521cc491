"""``heads``: which attention heads look at the picture, and which make things up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.output import json_document, memory_advice, note, show
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.testbed.assets import MODELS

if TYPE_CHECKING:
    from halludecode.analysis.head_map import HeadMap
    from halludecode.analysis.head_sensitivity import HeadSample

SUMMARY = "heads.json"  # beside the maps: their best heads, and how far they agree


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog=epilogs.HEADS)(heads)


def heads(
    model: Annotated[str, typer.Option(help="Hub id, folder, or testbed.")],
    output: Annotated[Path, typer.Option(help="Folder for maps, pictures and samples.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="vhd (default), mass or ablation; repeat for several."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures; with --annotations, of a file's.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="testbed-dev-iid (default for the testbed), a folder or data set id."),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="POPE question file or COCO instances file.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="A benchmark: of questions with right answers (default POPE), or of pictures to "
            "describe (CHAIR)."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What is asked about the pictures of --images alone.")
    ] = None,
    prompt_preset: options.PromptPreset = None,
    limit: Annotated[int, typer.Option(min=1, help="First N pictures of each source.")] = 20,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a written answer.")] = 32,
    sinks: Annotated[str, typer.Option(help="mass: whose sinks, such as var(tau=3).")] = "var",
    top: Annotated[int, typer.Option(min=1, help="Heads listed and ringed.")] = 10,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what is there.")] = False,
    engine: options.EngineName = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    json: options.Json = False,
) -> None:
    """Map how sensitive every attention head is to the picture: PNG, JSON and a table.

    A killed run continues where it stopped. A map feeds vhr(map=FILE), spin(map=FILE) and, made by
    ablation, adhh(map=FILE).
    """
    settings = dict(locals())  # the options alone: nothing else is a local yet
    metrics = list(dict.fromkeys(metric or ["vhd"]))
    _check(metrics, sinks)
    load = options.loader(model, engine, options.engine_arguments(settings))

    from halludecode.evals.load import check_places

    check_places(data or [], images, annotations)

    from halludecode.analysis.head_map_plot import check
    from halludecode.analysis.head_sensitivity import head_sensitivity
    from halludecode.evals.runner.batching import threads_for

    check()
    samples, source = _samples(settings)
    if "ablation" in metrics and all(s.answer is None and s.objects is None for s in samples):
        raise InvalidParameter(
            "--metric ablation needs right answers or true objects; give --data, or --annotations "
            "beside --images."
        )
    maps: dict[str, HeadMap] = {}
    with json_document(json) as documents, memory_advice(batch_size):
        loaded = load()
        for name in metrics:
            how = {"output": output, "source": source, "fresh": fresh, "progress": True}
            with threads_for(model):
                head_map = head_sensitivity(
                    loaded, samples, name, tokens=tokens, sinks=sinks, **how
                )
            _draw(head_map, output, top)
            maps[name] = head_map
        summary = _summary(maps, output, top)
        documents.append(summary)
    for head_map in maps.values():
        for sentence in head_map.notes:
            note(f"note: {head_map.metric}: {sentence}")
    if not json:
        show(*_overview(maps, summary, output, top))


def _check(metrics: Sequence[str], sinks: str) -> None:
    """Bad input first: it should not cost the time of loading a model."""
    from halludecode.analysis.head_map import METRICS
    from halludecode.core.spec import parse

    unknown = next((name for name in metrics if name not in METRICS), None)
    if unknown is not None:
        raise InvalidParameter(f"Unknown metric {unknown!r}; known: {', '.join(METRICS)}.")
    if [part.name for part in parse(sinks)] != ["var"]:
        raise InvalidParameter(
            f"--sinks {sinks}: give var with its parameters, such as var(tau=3)."
        )


def _samples(settings: Mapping[str, Any]) -> tuple[list[HeadSample], str]:
    """Samples and where they are from, in words."""
    from halludecode.analysis.samples import from_data, from_folder

    model, folder, file = settings["model"], settings["images"], settings["annotations"]
    how = {"preset": settings["prompt_preset"], "limit": settings["limit"]}
    sources = list(settings["data"] or [])
    if not sources and folder is None and file is None:
        if model not in MODELS:
            raise InvalidData(
                f"No pictures for model {model}: give --images DIR, or --data with a folder or "
                "data set id."
            )
        sources = ["testbed-dev-iid"]
    if file is None and folder is not None and not sources:
        return from_folder(folder, settings["prompt"], model, **how), folder.resolve().name
    if settings["prompt"] is not None:
        raise InvalidParameter(
            "--prompt goes with --images alone; labelled data has its own words."
        )
    labelled = from_data(sources, settings["task"], model, images=folder, annotations=file, **how)
    return labelled, ", ".join(Path(each).name for each in (*sources, file) if each)


def _draw(head_map: HeadMap, output: Path, top: int) -> None:
    """``METRIC.png``, and one picture of every part."""
    for part in (None, *(name for name, grid in head_map.parts.items() if grid.values.any())):
        name = head_map.metric + (f"-{part}" if part else "")
        try:
            head_map.plot(part=part, top=top).savefig(output / f"{name}.png")
        except OSError as error:
            raise InvalidData(
                f"{error.filename or output}: cannot be written ({error.strerror})."
            ) from None


def _summary(maps: Mapping[str, HeadMap], output: Path, top: int) -> dict[str, Any]:
    """What `heads.json` holds: per metric its best heads, per pair of metrics their agreement.

    Maps of this model that an earlier call left in the folder count, too.
    """
    from halludecode.analysis.head_map import METRICS, HeadMap
    from halludecode.evals.data.run_files import write_json

    first = next(iter(maps.values()))
    every = dict(maps)
    for name in METRICS:
        path = output / f"{name}.json"
        if name not in every and path.is_file():
            other = HeadMap.load(path)
            if other.model_digest == first.model_digest:
                every[name] = other
    summary = {
        "model": first.model,
        "model_digest": first.model_digest,
        "metrics": {
            name: {
                "map": f"{name}.json",
                "unit": head_map.unit,
                "samples": head_map.samples,
                "pictures": head_map.pictures,
                "source": head_map.source,
                "stability": head_map.stability,
                "numbers": head_map.numbers,
                "top": [head._asdict() for head in head_map.top(top)],
            }
            for name, head_map in every.items()
        },
        "agreement": [
            {"metrics": [a, b], "spearman": every[a].agreement(every[b])}
            for a, b in combinations(every, 2)
        ],
    }
    write_json(output / SUMMARY, summary)
    return summary


def _overview(
    maps: Mapping[str, HeadMap], summary: Mapping[str, Any], output: Path, top: int
) -> list[Any]:
    """Tables of the best heads, then stability, agreement and where everything is."""
    from rich.table import Table

    shown: list[Any] = []
    for head_map in maps.values():
        shown.append(head_map.table(top))
        if head_map.signed:
            shown.append(head_map.table(top, largest=False))
        if head_map.numbers:
            numbers = (
                f"{n} {v['value']:.4g} ({v['low']:.4g} .. {v['high']:.4g})"
                for n, v in head_map.numbers.items()
            )
            shown.append("  ".join(numbers))
    about = Table(title="maps", title_justify="left")
    for name in ("metric", "values are", "samples", "pictures", "halves agree (Spearman)"):
        about.add_column(name, justify="left" if name in ("metric", "values are") else "right")
    for name, row in summary["metrics"].items():
        counts = (str(row["samples"]), str(row["pictures"]))
        about.add_row(name, row["unit"], *counts, _number(row["stability"]))
    shown.append(about)
    if summary["agreement"]:
        pairs = Table(title="agreement between metrics", title_justify="left")
        for name in ("metrics", "Spearman over heads"):
            pairs.add_column(name, justify="left" if name == "metrics" else "right")
        for row in summary["agreement"]:
            pairs.add_row(" and ".join(row["metrics"]), _number(row["spearman"]))
        shown.append(pairs)
    files = ", ".join(f"{name}.json and {name}.png" for name in maps)
    return [*shown, f"Written to {output}: {files}, {SUMMARY}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
