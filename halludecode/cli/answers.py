"""``score`` and ``import``: answers made elsewhere; the same for two files given to ``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.config import pairs
from halludecode.cli.output import (
    columns_table,
    json_document,
    note,
    show,
    two_columns,
    without_collector,
)
from halludecode.core.errors import InvalidParameter

Task = Annotated[
    str, typer.Option(help="A benchmark of `list --tasks`: pope, chair(family=pattern) ...")
]
Annotations = Annotated[
    Path | None,
    typer.Option(
        help="The benchmark's questions, or a folder of them; COCO instances, or a folder of "
        "several (the captions file beside each counts too); AMBER's data folder."
    ),
]
Captions = Annotated[Path | None, typer.Option(help="COCO captions file.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog=epilogs.SCORE)(score)
    app.command("import", epilog=epilogs.IMPORT)(import_)


def score(
    task: Task,
    predictions: Annotated[
        Path,
        typer.Option(
            help="JSON lines, JSON, .tsv, .csv or .xlsx; for mme also its results folder, for all "
            "POPE splits a folder of files."
        ),
    ],
    annotations: Annotations = None,
    captions: Captions = None,
    parser: Annotated[
        str | None, typer.Option(help="official, opera, vcd, lmms_eval, vlmevalkit or repope.")
    ] = None,
    relabel: Annotated[
        Path | None,
        typer.Option(help="POPE questions with later labels, such as RePOPE's; matched by words."),
    ] = None,
    family: options.Family = None,
    gt_family: options.GtFamily = None,
    incomplete: options.Incomplete = None,
    image_ids: options.ImageIds = None,
    synonyms: options.Synonyms = None,
    details: Annotated[
        Path | None,
        typer.Option(help="CHAIR: write every caption's words and objects here, as JSON lines."),
    ] = None,
    similarity: options.Similarity = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what is answered, count what is not.")
    ] = False,
    columns: options.AnswerColumns = None,
    answers: options.Answers = None,
    resamples: Annotated[
        int, typer.Option(min=1, help="Bootstrap resamples of the 95 % intervals.")
    ] = 10_000,
    json: options.Json = False,
) -> None:
    """Score predictions made elsewhere; needs no model."""
    from halludecode.evals.runner.score_file import score_predictions

    with json_document(json) as documents, without_collector():
        scored = score_predictions(
            *(task, predictions, annotations, captions, parser, family, gt_family),
            relabel=relabel,
            incomplete=incomplete,
            image_ids=image_ids,
            synonyms=synonyms,
            details=details,
            similarity=similarity,
            allow_missing=allow_missing,
            columns=pairs(columns or []),
            answers=answers or "as_written",
            resamples=resamples,
        )
        documents.append(scored)
    for sentence in scored.get("told", ()):
        note(sentence)
    if not json:
        show(_scored(scored))


def import_(
    task: Task,
    predictions: Annotated[
        list[str],
        typer.Option(
            help="NAME=FILE, once a system; a folder holds a file a split. The others are compared "
            "with the one named greedy.",
            metavar="NAME=FILE",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    annotations: Annotations = None,
    data: Annotated[
        Path | None, typer.Option(help="A data folder to find the questions in.")
    ] = None,
    captions: Captions = None,
    columns: options.AnswerColumns = None,
    answers: options.Answers = None,
    model: Annotated[str | None, typer.Option(help="What answered, as you state it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What was asked, as you state it.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="As you state it.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="As you state it.")] = None,
    seed: Annotated[int, typer.Option(help="As you state it; compare --seeds needs it.")] = 0,
    engine: Annotated[str | None, typer.Option(help="As you state it.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As you state it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model, as you state it.")] = None,
    family: options.Family = None,
    gt_family: options.GtFamily = None,
    incomplete: options.Incomplete = None,
    image_ids: options.ImageIds = None,
    synonyms: options.Synonyms = None,
    similarity: options.Similarity = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run that is there.")] = False,
    json: options.Json = False,
) -> None:
    """Make a run folder of answers made elsewhere, for compare and report."""
    from halludecode.evals.runner.import_answers import import_answers

    stated = {"model": model, "prompt": prompt, "temperature": temperature, "dtype": dtype}
    stated |= {"max_new_tokens": max_new_tokens, "engine": engine, "revision": revision}
    given = {"family": family, "gt_family": gt_family, "incomplete": incomplete}
    given |= {"image_ids": image_ids, "similarity": similarity, "synonyms": synonyms}
    with json_document(json) as documents, without_collector():
        made = import_answers(
            task,
            named(predictions),
            output=output,
            fresh=fresh,
            annotations=annotations,
            data=data,
            captions=captions,
            columns=pairs(columns or []),
            answers=answers or "as_written",
            seed=seed,
            stated=stated,
            **given,
        )
        documents.append({**made.to_dict(), "read": list(made.told)} if json else None)
    if not json:
        show(made.table())
    note(f"saved in {output}")


def named(predictions: Sequence[str]) -> dict[str, str | list[str]]:
    """``NAME=FILE`` as a mapping; a name given twice has several files.

    Raises:
        InvalidParameter: One has no name.
    """
    found: dict[str, Any] = {}
    for text in predictions:
        name, equals, file = text.partition("=")
        if not equals or not name.strip() or not file:
            raise InvalidParameter(
                f"--predictions {text}: write NAME=FILE, such as greedy={Path(text).name}."
            )
        found.setdefault(name.strip(), []).append(file)
    return {name: files if files[1:] else files[0] for name, files in found.items()}


def are_files(runs: Sequence[str]) -> bool:
    """Whether what `compare` was given are files of answers: the first is a file, perhaps named."""
    path = runs[0].partition("=")[2] if _is_named(runs[0]) else runs[0]
    return Path(path).is_file()


def compared(files: Sequence[str], task: str | None, given: dict[str, Any]) -> Any:
    """The comparison of two or three files of answers.

    Args:
        files: ``FILE`` or ``NAME=FILE``; three are a strategy, its sampled baseline and greedy.
        task: The benchmark they answer.
        given: Further arguments of `import_answers.judged`.

    Raises:
        InvalidParameter: There are not two or three files, or no task is named.
    """
    from halludecode.evals.results.compare import compare_answers
    from halludecode.evals.runner.import_answers import judged

    if task is None:
        raise InvalidParameter(
            f"{files[0]} is no run folder; of two files of answers, say to what: --task pope."
        )
    if len(files) not in (2, 3):
        raise InvalidParameter(f"compare takes two or three files of answers, not {len(files)}.")
    if "columns" in given:
        given = {**given, "columns": pairs(given["columns"])}
    made = judged(task, _names(files), **given)
    return compare_answers(made.run, made.lines, list(made.run["strategies"]), tuple(made.told))


def _names(files: Sequence[str]) -> dict[str, str]:
    """The files under their own names, as short as tells them apart."""
    from halludecode.evals.data.answer_records import stem_of

    split = [(*text.partition("=")[::2],) if _is_named(text) else ("", text) for text in files]
    paths = [Path(path) for _, path in split]
    stems = [stem_of(path) for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{p.parent.name}/{s}" for p, s in zip(paths, stems, strict=True)]
    if len(set(stems)) < len(stems):
        stems = ["first", "second", "third"][: len(files)]
    names = [name or stem for (name, _), stem in zip(split, stems, strict=True)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidParameter(f"several files are named {twice!r}; name them apart.")
    return {name: path for name, (_, path) in zip(names, split, strict=True)}


def _is_named(text: str) -> bool:
    return "=" in text and not Path(text).exists()


# Tables -----------------------------------------------------------------------------------------


def _scored(scored: dict[str, Any]) -> Any:
    """Metrics of a scored file with their intervals; those of POPE's splits beside their mean."""
    rows = {"task": scored["task"], **_values(scored)}
    if "splits" not in scored:
        return two_columns(rows)
    parts = {split: _values(part) for split, part in scored["splits"].items()}
    columns = {"": list(rows), "mean": list(rows.values())}
    columns |= {split: [own.get(name, "") for name in rows] for split, own in parts.items()}
    return columns_table(columns)


def _values(scored: dict[str, Any]) -> dict[str, Any]:
    counts = ("unparsed", "unread", "empty", "missing", "left_out")
    values = {
        name: _interval(metric) for name, metric in scored["metrics"].items() if name not in counts
    }
    told = {k: scored[k] for k in counts if k in scored}
    metrics = scored["metrics"]
    told |= {k: int(metrics[k]["value"]) for k in counts if k in metrics}
    more = {k: scored[k] for k in ("path", "parser", "family", "gt_family") if scored.get(k)}
    return {"n": scored["n"], **values, **told, **more, **scored.get("relabelled", {})}


def _interval(metric: dict[str, float]) -> str:
    value = f"{metric['value']:.4f}"
    return f"{value} [{metric['low']:.4f}, {metric['high']:.4f}]" if "low" in metric else value
