"""Runs a model under several strategies over tasks and data sources, into a run folder.

How the answers are made is `batches`, how they are kept `store`, how they are scored `results`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidParameter
from halludecode.engines.api import Engine, Sampling
from halludecode.evals.benchmarks.amber.description_words import Similarity, way_name
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.object_words import reader
from halludecode.evals.data.image_ids import load_ids
from halludecode.evals.load import Selection, load_units
from halludecode.evals.presets import DESCRIBED, TASKS, Preset, preset_for
from halludecode.evals.results import controls as hd_controls
from halludecode.evals.results.build import Report, arrange, build_results
from halludecode.evals.results.kept_pictures import save_pictures
from halludecode.evals.runner.batching import BATCH, Setup, answer_all
from halludecode.evals.runner.run_folder import RunStore
from halludecode.evals.runner.run_record import check_data, recipe
from halludecode.testbed import MODELS


def run_eval(
    engine_or_loader: Any,
    *,
    tasks: Sequence[str],
    strategies: Sequence[Any],
    output: str | Path,
    fresh: bool = False,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Evaluates every strategy on every task and source, resuming what the output folder holds.

    Args:
        engine_or_loader: A loaded engine, or a function without arguments that loads one.
        tasks: Of `task.TASKS`.
        strategies: Spec strings (or strategies); all share the loaded model. With greedy among them
            every other one is compared with it.
        output: The run folder.
        fresh: Start over in a folder that holds a run.
        progress: Show a progress bar on standard error.
        **options: Data, prompts, limits and sampling: see `prepare`.

    Raises:
        InvalidData: Data or the output folder cannot be used.
        HalluDecodeError: A strategy, preset or model cannot be used; failures of single samples do
            not raise but are listed in ``errors.jsonl``.
        KeyboardInterrupt: Interrupted; what is done is kept.
    """
    setup = prepare(engine_or_loader, tasks=tasks, strategies=strategies, **options)
    check = functools.partial(check_data, setup, Path(output))
    with RunStore(Path(output), *recipe(setup), fresh=fresh, check=check) as store:
        answer_all(setup, store, progress)
        names = [plan.canonical for plan in setup.plans.values()]
        results = build_results(store.done, setup.units, names, store.run, setup.seed)
        failed = sum(entry["failed"] for entry in results["runs"] if entry["split"] != "mean")
        results = store.write_results(results)
        _keep_pictures(store, setup, names)
        return Report(results, Path(output), store.run, failed)


def evaluate(
    engine: Any,
    tasks: Sequence[str] = ("pope", "chair", "mme"),
    strategy: Any = "greedy",
    limit: int | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Report:
    """`run_eval` for one strategy or a list; without ``out`` the run folder is temporary.

    Args:
        engine: A loaded engine.
        tasks: Of `task.TASKS`.
        strategy: Spec string, strategy, or a list of them.
        limit: First N pictures per source and task.
        out: Run folder.
        **options: As for `run_eval`; no progress bar unless ``progress=True``.
    """
    strategies = list(strategy) if isinstance(strategy, list | tuple) else [strategy]
    folder = out if out is not None else tempfile.mkdtemp(prefix="halludecode-")
    options = {"progress": False, **options}
    return run_eval(
        engine, tasks=tasks, strategies=strategies, limit=limit, output=folder, **options
    )


# Set-up -----------------------------------------------------------------------------------------


def prepare(
    engine_or_loader: Any,
    *,
    tasks: Sequence[str],
    strategies: Sequence[Any],
    data: Sequence[str | Path] = (),
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    prompt_preset: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    controls: bool | None = None,
    **selection: Any,
) -> Setup:
    """Checks every argument, reads the data, then loads the model; nothing is generated.

    Args:
        engine_or_loader: As for `run_eval`.
        tasks: Of `task.TASKS`.
        strategies: Spec strings or strategies.
        data: Testbed names, folders or hub ids; for the testbed model ``testbed-iid`` by default.
        images: Folder of pictures (with ``annotations``, or replacing a data folder's own).
        annotations: POPE question file, COCO instances file, AMBER's annotations.json or
            HallusionBench.json.
        prompt_preset: A name of `task.PRESETS` or "testbed"; see `task.preset_for`.
        batch_size: Requests in one forward batch; None leaves the engine's own.
        seed: Seed of sampled decoding and of the bootstrap.
        temperature: Of all tasks; 0 is greedy.
        max_new_tokens: Of all tasks; None takes the preset's.
        controls: Also run what sampled results must be read against, see `results.controls`; None
            is yes above temperature 0, where alone it tells something.
        **selection: ``limit`` (first N pictures per source and task, with all their questions),
            ``pope_splits`` (empty takes those there are), ``columns`` (hub column map),
            ``testbed_images`` (pictures per testbed source); of CHAIR ``family`` and ``gt_family``
            (see `chair.families_of`), ``incomplete`` (see `chair.trim`; None is the preset's) and
            ``image_ids`` (a list for `image_ids.load_ids`; None takes all); of AMBER ``similarity``
            (see `amber.score`).
    """
    limit, ids = selection.get("limit"), selection.get("image_ids")
    _check_arguments(tasks, strategies, limit, batch_size)
    name, engine = _model_name(engine_or_loader), None
    if not name:  # a loader that does not tell what it loads
        engine = _engine(engine_or_loader)
        name = engine.model_id
    presets = {task: preset_for(prompt_preset, name, [task]) for task in tasks}
    chosen = _selection(tasks, presets, **selection)
    # Data come before the model: a misspelt folder should not cost the time of loading one.
    sources = _sources(data, images, annotations, name)
    units = load_units(sources, chosen, _path(images), _path(annotations))
    engine = engine or _engine(engine_or_loader)
    if batch_size is not None and engine.batch_size is not None:
        engine.batch_size = batch_size
    sampling = {
        kind: Sampling(
            max_new_tokens=max_new_tokens or preset.tokens(kind),
            temperature=temperature,
            seed=seed if temperature > 0 else None,
        )
        for task, (_, preset) in presets.items()
        for kind in ((task, DESCRIBED) if task == "amber" else (task,))
    }
    plans = _plans(engine, strategies)
    if controls or (controls is None and temperature > 0):
        plans = hd_controls.with_controls(engine, plans)
    return Setup(
        engine=engine,
        model=name,
        plans=plans,
        units=units,
        presets=presets,
        sampling=sampling,
        families=chosen.families,
        seed=seed,
        limit=limit,
        batch=BATCH.get(engine.name, BATCH["hf"]),
        controls=hd_controls.record(plans) if temperature > 0 else {},
        image_ids=None if ids is None else str(ids),
        amber={"similarity": way_name(chosen.similarity)} if "amber" in tasks else {},
    )


def _selection(
    tasks: Sequence[str],
    presets: Mapping[str, tuple[str, Preset]],
    *,
    limit: int | None = None,
    pope_splits: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    testbed_images: int = 500,
    image_ids: str | Path | None = None,
    similarity: Similarity | str | None = None,
    **captions: str | None,
) -> Selection:
    plain = {task: preset for task, (_, preset) in presets.items()}
    if image_ids is not None and "chair" not in tasks:
        raise InvalidParameter("image-ids choose pictures for chair, which is not among the tasks.")
    return Selection(
        tuple(tasks),
        plain,
        limit=limit,
        splits=tuple(pope_splits),
        families=_families(plain.get("chair"), **captions),
        image_ids=() if image_ids is None else load_ids(image_ids),
        columns=columns or {},
        testbed_images=testbed_images,
        similarity=similarity,
    )


def _families(
    preset: Preset | None,
    family: str = "wordnet",
    gt_family: str | None = None,
    incomplete: str | None = None,
) -> dict[str, str]:
    """CHAIR's recipe: word families, what reads captions on this machine, the last sentence."""
    family, gt_family = chair.families_of(family, gt_family)
    if preset is None:
        return {"family": family, "gt_family": gt_family}
    incomplete = incomplete or preset.incomplete
    chair.trim("", incomplete=incomplete)  # refuses what is neither keep nor drop
    return {
        "family": family,
        "gt_family": gt_family,
        "path": reader(family).path,
        "incomplete": incomplete,
    }


def _sources(
    data: Sequence[str | Path], images: Any, annotations: Any, model: str
) -> list[str | Path]:
    if data or images is not None or annotations is not None:
        return list(data)
    if model not in MODELS:
        raise InvalidParameter(
            "No data: give a data source (testbed-iid, a folder, a hub id), or --images with "
            "--annotations."
        )
    return ["testbed-iid"]


def _plans(engine: Any, strategies: Sequence[Any]) -> dict[str, Any]:
    """Compiled plans by spec; a strategy given twice is run once."""
    plans: dict[str, Any] = {}
    for spec in strategies:
        plan = engine.plan(spec)
        if plan.canonical not in {known.canonical for known in plans.values()}:
            plans[spec if isinstance(spec, str) else plan.canonical] = plan
    return plans


def _engine(engine_or_loader: Any) -> Any:
    return engine_or_loader if isinstance(engine_or_loader, Engine) else engine_or_loader()


def _model_name(engine_or_loader: Any) -> str:
    """The model's name before it is loaded: an engine's own, or what a partial loader was given."""
    if isinstance(engine_or_loader, functools.partial) and engine_or_loader.args:
        return str(engine_or_loader.args[0])
    return str(getattr(engine_or_loader, "model_id", ""))


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _check_arguments(
    tasks: Sequence[str], strategies: Sequence[Any], limit: int | None, batch_size: int | None
) -> None:
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks or len(set(tasks)) < len(tasks):
        name = f"no task {unknown[0]!r}" if unknown else "name each task once"
        raise InvalidParameter(f"Tasks: {name}; the known ones are {', '.join(TASKS)}.")
    if not strategies:
        raise InvalidParameter("No strategy: give at least one, such as greedy.")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InvalidParameter(f"{name}={value}: {name} must be at least 1.")


def _keep_pictures(store: RunStore, setup: Setup, strategies: Sequence[str]) -> None:
    """Copies the pictures that the report shows into the run folder."""
    keys = [(*u.key, name, s.id) for name in strategies for u in setup.units for s in u.samples]
    groups = arrange((store.done[key] for key in keys if key in store.done), setup.families)
    asked = [(u.data, s.picture) for u in setup.units for s in u.samples]
    pictures = {(data, p.name): p for data, p in asked if p.digest}
    save_pictures(store.path, groups.values(), pictures)


def dry_run(engine_or_loader: Any, **options: Any) -> dict[str, Any]:
    """Rows, passes and predicted time per strategy; see `runner.dry_run`."""
    from halludecode.evals.runner import dry_run as forecast

    return forecast.dry_run(engine_or_loader, **options)
