"""``eval``, ``pope-questions``, ``compare``, ``report``: numbers with their recipes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from halludecode.cli import epilogs, options
from halludecode.cli.answers import are_files, compared
from halludecode.cli.config import merge
from halludecode.cli.output import (
    fail,
    json_document,
    memory_advice,
    note,
    show,
    two_columns,
    without_collector,
)
from halludecode.core.errors import InvalidParameter


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("eval", epilog=epilogs.EVAL)(eval_)
    app.command("pope-questions")(pope_questions)
    app.command("merge")(merge_shards)
    app.command(epilog=epilogs.COMPARE)(compare)
    app.command(epilog=epilogs.REPORT)(report)


def eval_(
    model: Annotated[str | None, typer.Option(help="Hub id, folder, or testbed.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Benchmarks of `list --tasks`, by commas, with their parameters: "
            "pope,chair(family=pattern)."
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Repeat for several on one loaded model.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="testbed-iid, testbed-broken, a hub id (owner/name[:config][@revision]), a folder "
            "or a VLMEvalKit .tsv."
        ),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the pictures.")] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            help="A benchmark's own question file, such as POPE questions, COCO instances "
            "(captions beside them count too) or HallusionBench.json; with --images."
        ),
    ] = None,
    image_ids: options.ImageIds = None,
    synonyms: options.Synonyms = None,
    prompt_preset: options.PromptPreset = None,
    family: options.Family = None,
    gt_family: options.GtFamily = None,
    incomplete: options.Incomplete = None,
    similarity: options.Similarity = None,
    columns: options.Columns = None,
    engine: options.EngineName = None,
    server: options.Servers = None,
    api_key: options.ApiKey = None,
    concurrency: options.Concurrency = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only the first N pictures of each source and task, with all their questions; "
            "MME's from its subtasks in turn; groups where a benchmark judges them together. Hub "
            "data are then streamed; the testbed makes up to 500 pictures, or N if that is more.",
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    extra_rows: options.ExtraRows = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run (default 0).")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="0..4 or 0,1,7: a run each, with the spread over them; sampled alone."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 (default) is greedy.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens, in place of the preset's.")
    ] = None,
    controls: Annotated[
        bool | None,
        typer.Option(
            "--controls/--no-controls",
            help="Also run apc_only and scaled, the sampling controls of strategies that cut or "
            "sharpen the distribution; default: only above temperature 0, where they tell.",
        ),
    ] = None,
    answers: options.Answers = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="K/N: every N-th picture alone, from the K-th on, for a job of an array; `merge` "
            "joins the N run folders."
        ),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    engine_arg: options.EngineArgs = None,
    output: Annotated[str | None, typer.Option(help="Run folder; resumed if it exists.")] = None,
    fresh: Annotated[bool | None, typer.Option("--fresh", help="Start over.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print rows, passes and predicted time.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of these options.")
    ] = None,
    json: options.Json = False,
) -> int:
    """Evaluate strategies; resumes where it stopped."""
    flags = {k: v for k, v in locals().items() if k not in ("dry_run", "config", "json")}
    run = merge(flags, config)
    needed = ("tasks", "strategy", *(() if run.get("server") else ("model",)))
    for name in needed if dry_run else (*needed, "output"):
        if not run[name]:
            raise InvalidParameter(f"eval needs --{name} (or {name} in a --config file).")
    if run["shard"] and (run["seeds"] or dry_run):
        other = "--seeds" if run["seeds"] else "--dry-run"
        raise InvalidParameter(f"--shard does not go with {other}; drop one.")
    if dry_run:
        return _predict(run, json)
    return _run_seeds(run, json) if run["seeds"] else _run(run, json)


def loader(run: dict[str, Any]) -> Any:
    """Loads the model only when it is needed, so that bad input is reported first."""
    if run.get("server"):
        given = options.server_arguments(run)
        return lambda: options.load(run["server"], engine="server", **given)
    given = options.engine_arguments(run)
    for name in ("api_key", "concurrency"):
        if run.get(name) is not None:
            raise InvalidParameter(f"--{name.replace('_', '-')} goes with --server; add its URL.")
    return options.loader(run["model"], run["engine"], given)


def arguments(run: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a run and its forecast share."""
    given = ("temperature", "max_new_tokens", "controls", "answers", "shard")
    given += ("family", "gt_family", "incomplete", "image_ids", "synonyms")
    given += ("similarity", "columns")
    return {
        "tasks": run["tasks"],
        "strategies": run["strategy"],
        "data": tuple(run["data"]),
        "images": Path(run["images"]) if run["images"] else None,
        "annotations": Path(run["annotations"]) if run["annotations"] else None,
        "prompt_preset": run["prompt_preset"],
        "limit": run["limit"],
        "batch_size": run["batch_size"],
        "seed": run["seed"] or 0,
        **{name: run[name] for name in given if run[name] is not None},
    }


def _predict(run: dict[str, Any], json: bool) -> int:
    from halludecode.evals.runner.dry_run import dry_run

    with json_document(json) as documents, memory_advice(run["batch_size"]):
        predicted = dry_run(loader(run), **arguments(run))
        documents.append(predicted)
    if not json:
        show(two_columns(predicted))
    return 0


def _run(run: dict[str, Any], json: bool) -> int:
    from halludecode.evals.runner.run import run_eval

    folder = Path(run["output"])
    with json_document(json) as documents, memory_advice(run["batch_size"]):
        result = run_eval(
            loader(run),
            **arguments(run),
            output=folder,
            fresh=bool(run["fresh"]),
        )
        documents.append(result.to_dict() if json else None)
    if run["shard"]:
        note(f"answers of shard {run['shard']}; `halludecode merge` scores all of them together")
    elif not json:
        show(result.table())
    if result.failed:
        samples = "sample" if result.failed == 1 else "samples"
        rest = "the rest is scored"
        if result.left_out:
            rest += f" but for {result.left_out} that count only together with these"
        fail(f"{result.failed} {samples} failed, {rest}; see {folder / 'errors.jsonl'}")
        return 1
    if result.gone:
        fail(
            f"all samples are scored, but {len(result.gone)} picture(s) of the report are gone, "
            f"the first {result.gone[0]}; results are saved in {folder}"
        )
        return 1
    note(f"saved in {folder}")
    return 0


def _run_seeds(run: dict[str, Any], json: bool) -> int:
    from halludecode.evals.report.seed_plots import draw_seeds
    from halludecode.evals.runner.seeds import run_seeds

    folder = Path(run["output"])
    given = arguments(run)
    del given["seed"]
    with json_document(json) as documents, memory_advice(run["batch_size"]):
        how = {"seeds": run["seeds"], "output": folder, "fresh": bool(run["fresh"])}
        found, reports = run_seeds(loader(run), **given, **how)
        draw_seeds(folder, found.spreads, [r.results for r in reports], found.labels)
        documents.append(found.to_dict())
    if not json:
        show(found.table())
    if failed := sum(report.failed for report in reports):
        fail(f"{failed} samples failed, the rest is scored; see errors.jsonl in {folder}/seed-*")
        return 1
    note(f"saved in {folder}: seed-*, seeds.json, drawings")
    return 0


def merge_shards(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders of eval --shard K/N.", metavar="RUN...")
    ],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    json: options.Json = False,
) -> int:
    """Join the shards of a run: the folder and the results of one that was never divided.

    The data are read again, where eval found them; the model is not loaded.
    """
    from halludecode.evals.runner.merge import merge as joined

    with json_document(json) as documents:
        result = joined(runs, output)
        documents.append(result.to_dict() if json else None)
    if not json:
        show(result.table())
    if result.failed:
        fail(f"{result.failed} samples failed, the rest is scored; see {output / 'errors.jsonl'}")
        return 1
    note(f"saved in {output}")
    return 0


def pope_questions(
    annotations: Annotated[Path, typer.Option(help="COCO-format instances of any pictures.")],
    output: Annotated[Path, typer.Option(help="Folder; pope/<setting>.jsonl is written in it.")],
    captions: Annotated[
        Path | None, typer.Option(help="COCO captions, whose objects count as present too.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures drawn, at most.")] = 500,
    per_image: Annotated[
        int, typer.Option(min=1, help="Objects asked about that are there; as many that are not.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the drawn pictures and objects.")] = 0,
) -> None:
    """Make POPE's random, popular and adversarial questions from annotations."""
    from halludecode.evals.benchmarks.pope.make_questions import (
        make_questions,
        picture_objects,
        write_questions,
    )

    objects = picture_objects(annotations, captions)
    made = make_questions(objects, pictures=pictures, per_image=per_image, seed=seed)
    write_questions(output, made)
    asked = next(iter(made.values()))
    note(
        f"wrote {len(asked)} questions about {len({q['image'] for q in asked})} pictures for each "
        f"setting in {output / 'pope'}; eval takes them with --data {output} --images DIR"
    )


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="RUN or RUN:STRATEGY, one to three; or files of answers, FILE or NAME=FILE. "
            "Three: a strategy, its sampled baseline, plain greedy.",
            metavar="RUN...",
        ),
    ],
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds",
            help="The runs, three or more, are one recipe under different seeds: mean, sd and an "
            "interval over seeds and pictures.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Every metric of every split, with all controls.")
    ] = False,
    task: Annotated[str | None, typer.Option(help="Of files: what they answer.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Of files: the questions, as for score.")
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="Of files: COCO captions file.")] = None,
    columns: options.AnswerColumns = None,
    answers: options.Answers = None,
    family: options.Family = None,
    gt_family: options.GtFamily = None,
    incomplete: options.Incomplete = None,
    image_ids: options.ImageIds = None,
    synonyms: options.Synonyms = None,
    similarity: options.Similarity = None,
    json: options.Json = False,
) -> None:
    """Paired differences with intervals, p-values and controls: a summary, or --full.

    One run alone: every strategy against greedy.
    """
    files = {"annotations": annotations, "captions": captions, "columns": columns}
    files |= {"answers": answers, "family": family, "gt_family": gt_family}
    files |= {"incomplete": incomplete, "image_ids": image_ids, "similarity": similarity}
    files |= {"synonyms": synonyms}
    given = {name: value for name, value in files.items() if value is not None}
    if not seeds and (task is not None or are_files(runs)):
        with json_document(json) as documents, without_collector():
            comparison = compared(runs, task, given)
            documents.append(comparison.to_dict() if json else None)
        for sentence in comparison.told:
            note(sentence)
        if not json:
            _show(comparison, full)
        return
    if given or task is not None:
        name = next(iter(given), "task").replace("_", "-")
        raise InvalidParameter(f"--{name} is for files of answers, not for run folders; drop it.")
    if seeds:
        from halludecode.evals.results.compare import compare_seeds as chosen
    else:
        from halludecode.evals.results.compare import compare_runs as chosen
    with json_document(json) as documents, without_collector():
        comparison = chosen(runs)
        documents.append(comparison.to_dict() if json else None)
    if seeds and not json:
        show(comparison.table())
    elif not json:
        _show(comparison, full)


def _show(comparison: Any, full: bool) -> None:
    show(comparison.table() if full else comparison.summary())
    if not full:
        note("every metric, split and control: the same with --full")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    format: Annotated[
        str, typer.Option(help="html, md, csv, latex, lmms-eval or vlmevalkit.")
    ] = "md",
    output: Annotated[Path | None, typer.Option(help="File or folder to write.")] = None,
) -> None:
    """Render run folders as a page, a table or other files."""
    from halludecode.evals.report.render import render

    rendered = render(runs, format, output)
    if output is None and rendered is not None:
        sys.stdout.write(f"{rendered}\n")
    else:
        note(f"wrote {output}")
