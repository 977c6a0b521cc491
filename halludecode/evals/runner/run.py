"""Runs a model under several strategies over tasks and data sources, into a run folder.

How the answers are made is `batches`, how they are kept `store`, how they are scored `results`.
"""

from __future__ import annotations

import functools
import inspect
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidParameter
from halludecode.core.spec import format as canonical
from halludecode.core.spec import parse
from halludecode.engines.api import Engine, Sampling
from halludecode.evals.benchmarks.answer_file import check_rule
from halludecode.evals.benchmarks.base import Benchmark
from halludecode.evals.benchmarks.registry import check_option, choose, standard
from halludecode.evals.data.entries import TESTBED_IMAGES, Selection
from halludecode.evals.data.oddities import odd_units
from halludecode.evals.load import load_units
from halludecode.evals.presets import Preset, preset_for
from halludecode.evals.results import controls as hd_controls
from halludecode.evals.results.build import MEAN, Report, arrange, build_results
from halludecode.evals.results.kept_pictures import save_pictures
from halludecode.evals.runner.batching import BATCH, Setup, answer_all
from halludecode.evals.runner.run_folder import RunStore, check_folder, writing
from halludecode.evals.runner.run_record import check_data, recipe
from halludecode.testbed.assets import MODELS


def run_eval(
    engine_or_loader: Any,
    *,
    tasks: Any,
    strategies: Sequence[Any],
    output: str | Path,
    fresh: bool = False,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Evaluates every strategy on every task and source, resuming what the output folder holds.

    Args:
        engine_or_loader: A loaded engine, or a function without arguments that loads one.
        tasks: Benchmarks as `registry.choose` takes them: ``["pope", "chair(family=pattern)"]``.
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
    check_folder(Path(output))
    setup = prepare(engine_or_loader, tasks=tasks, strategies=strategies, **options)
    return run_setup(setup, output, fresh=fresh, progress=progress)


def run_setup(
    setup: Setup, output: str | Path, *, fresh: bool = False, progress: bool = True
) -> Report:
    """`run_eval` of what has been prepared; of a shard the answers alone, see `merge`."""
    check = functools.partial(check_data, setup, Path(output))
    with RunStore(Path(output), *recipe(setup), fresh=fresh, check=check) as store:
        answer_all(setup, store, progress)
        if setup.shard is None:
            return score(setup, store)
        failed = len(store.failures.keys() - store.done.keys())
        return Report({"runs": [], "differences": []}, Path(output), store.run, failed)


def score(setup: Setup, store: RunStore) -> Report:
    """Writes the results of what a folder holds."""
    names = [plan.canonical for plan in setup.plans.values()]
    results = build_results(store.done, setup.units, names, store.run, setup.seed)
    single = [entry for entry in results["runs"] if entry["split"] != MEAN]
    failed = sum(entry["failed"] for entry in single)
    left_out = sum(entry.get("left_out", 0) for entry in single)
    results = store.write_results(results)
    gone = _keep_pictures(store, setup, names)
    told = tuple(way for benchmark in setup.benchmarks.values() for way in benchmark.ways())
    told += odd_units(setup.units)
    return Report(results, store.path, store.run, failed, left_out, told, tuple(gone))


def evaluate(
    engine: Any,
    tasks: Any = None,
    strategy: Any = "greedy",
    limit: int | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Report:
    """`run_eval` for one strategy or a list; without ``out`` the run folder is temporary.

    Args:
        engine: A loaded engine.
        tasks: Benchmarks, as ``"pope,chair(family=pattern)"`` or a list; None takes POPE, CHAIR and
            MME.
        strategy: Spec string, strategy, or a list of them.
        limit: First N pictures per source and task.
        out: Run folder.
        **options: As for `run_eval`; no progress bar unless ``progress=True``.
    """
    strategies = list(strategy) if isinstance(strategy, list | tuple) else [strategy]
    folder = out if out is not None else tempfile.mkdtemp(prefix="halludecode-")
    options = {"progress": False, **options}
    chosen = standard() if tasks is None else tasks
    return run_eval(
        engine, tasks=chosen, strategies=strategies, limit=limit, output=folder, **options
    )


# Set-up -----------------------------------------------------------------------------------------


def prepare(
    engine_or_loader: Any,
    *,
    tasks: Any,
    strategies: Sequence[Any],
    data: str | Path | Sequence[str | Path] = (),
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    prompt_preset: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    testbed_images: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    controls: bool | None = None,
    answers: str = "as_written",
    shard: str | None = None,
    **parameters: Any,
) -> Setup:
    """Checks every argument, reads the data, then loads the model; nothing is generated.

    Args:
        engine_or_loader: As for `run_eval`.
        tasks: Benchmarks as `registry.choose` takes them.
        strategies: Spec strings or strategies.
        data: Testbed names, folders or hub ids, or one of them; for the testbed model
            ``testbed-iid`` by default.
        images: Folder of pictures (with ``annotations``, or replacing a data folder's own).
        annotations: A question file of the one benchmark asked for.
        prompt_preset: A name of `presets.PRESETS` or "testbed"; see `presets.preset_for`.
        limit: First N pictures (or groups) per source and benchmark, with all their questions.
        columns: Our column names to a hub data set's own.
        testbed_images: Pictures per testbed source; None makes 500, or ``limit`` if that is more.
        batch_size: Requests in one forward batch; None leaves the engine's own.
        seed: Seed of sampled decoding and of the bootstrap.
        temperature: Of all tasks; 0 is greedy.
        max_new_tokens: Of all tasks; None takes the preset's.
        controls: Also run what sampled results must be read against, see `results.controls`; None
            is yes above temperature 0, where alone it tells something.
        answers: ``as_written``, or ``final``: what an answer finally says, see `final_answer`.
        shard: ``K/N``: ask about every N-th picture of each source alone, from the K-th on; `merge`
            joins the N run folders.
        **parameters: Parameters of single benchmarks by their old names: ``pope_splits``;
            ``family``, ``gt_family``, ``incomplete``, ``image_ids`` and ``synonyms`` of CHAIR;
            ``similarity`` of AMBER. None means not given.

    Raises:
        HalluDecodeError: An argument, a file or the model cannot be used; of options that do not
            exist near misses are named.
    """
    given = dict(locals())  # the options alone: nothing else is a local yet
    for option in parameters:
        check_option(option, _OPTIONS)
    _check_arguments(strategies, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    check_rule(answers)
    part = _shard(shard)
    if not isinstance(seed, int):
        raise InvalidParameter(f"seed={seed!r}: seed must be a whole number.")
    data = [data] if isinstance(data, str | Path) else data
    asked = choose(tasks, **parameters)
    name, engine = _model_name(engine_or_loader), None
    if not name:  # a loader that does not tell what it loads
        engine = _engine(engine_or_loader)
        name = engine.model_id
    presets = {b.name: preset_for(prompt_preset, name, [b]) for b in asked}
    benchmarks = {b.name: b.settled(presets[b.name][1]) for b in asked}
    plain = {task: preset for task, (_, preset) in presets.items()}
    sampling = _sampling(benchmarks, plain, max_new_tokens, temperature, seed)
    if engine is None and not isinstance(engine_or_loader, Engine):
        for spec in strategies:  # a server may know more of them, and is asked
            parse(spec)
    made = max(TESTBED_IMAGES, limit or 0) if testbed_images is None else testbed_images
    chosen = Selection(tuple(benchmarks.values()), plain, limit, columns or {}, made)
    # Data come before the model: a misspelt folder should not cost the time of loading one.
    sources = _sources(data, images, annotations, name)
    units = load_units(sources, chosen, _path(images), _path(annotations))
    engine = engine or _engine(engine_or_loader)
    if batch_size is not None and engine.batch_size is not None:
        engine.batch_size = batch_size
    plans = _plans(engine, strategies)
    if controls or (controls is None and temperature > 0):
        plans = hd_controls.with_controls(engine, plans)
    return Setup(
        engine=engine,
        model=name,
        plans=plans,
        units=units,
        benchmarks=benchmarks,
        presets=presets,
        sampling=sampling,
        seed=seed,
        limit=limit,
        batch=BATCH.get(engine.name, BATCH["hf"]),
        controls=hd_controls.record(plans) if temperature > 0 else {},
        answers=answers,
        call=_call({**given, "shard": None}),
        load=_load(engine_or_loader),
        shard=part,
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    """(K, N) of ``K/N``."""
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", text) if isinstance(text, str) else None
    first, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= count:
        raise InvalidParameter(f"shard={text!r}: give K/N with K from 1 to N, such as 2/8.")
    return first, count


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `prepare` that were given, as ``run.json`` holds them."""
    options = {k: v for k, v in given.items() if k not in ("engine_or_loader", "parameters")}
    options |= given["parameters"]
    for name in ("tasks", "strategies", "data"):
        value = options[name]
        options[name] = [value] if isinstance(value, str | Path) else list(value)
    options["strategies"] = [_written(spec) for spec in options["strategies"]]
    return {name: _plain(value) for name, value in options.items() if value is not None}


def _written(spec: Any) -> str:
    """A strategy as text; one that is an object of somebody's own can only be named."""
    try:
        return spec if isinstance(spec, str) else canonical(parse(spec))
    except InvalidParameter:
        return type(spec).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


# All options of `run_eval` and `evaluate`, for near misses.
_OPTIONS = (
    *("out", "output", "fresh", "progress", "strategy"),
    *(p.name for p in inspect.signature(prepare).parameters.values() if p.kind is p.KEYWORD_ONLY),
)


def _sampling(
    benchmarks: Mapping[str, Benchmark],
    presets: Mapping[str, Preset],
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
) -> dict[str, Sampling]:
    """How answers of every kind are sampled."""
    return {
        kind: Sampling(
            max_new_tokens=max_new_tokens or benchmark.tokens(kind, presets[name]),
            temperature=temperature,
            seed=seed if temperature > 0 else None,
        )
        for name, benchmark in benchmarks.items()
        for kind in benchmark.kinds()
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


def _load(engine_or_loader: Any) -> dict[str, Any]:
    """Options of a partial loader, such as the revision, for ``run.json``."""
    given = getattr(engine_or_loader, "keywords", {})
    return {name: _plain(value) for name, value in given.items() if name != "engine"}


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _check_arguments(strategies: Sequence[Any], **counts: int | None) -> None:
    if not strategies:
        raise InvalidParameter("No strategy: give at least one, such as greedy.")
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidParameter(f"{name}={value!r}: {name} must be a whole number, at least 1.")


def _keep_pictures(store: RunStore, setup: Setup, strategies: Sequence[str]) -> list[str]:
    """Copies the pictures that the report shows into the run folder; returns what is gone."""
    keys = [(*u.key, name, s.id) for name in strategies for u in setup.units for s in u.samples]
    groups = arrange((store.done[key] for key in keys if key in store.done), store.run)
    asked = [(u.data, s.picture) for u in setup.units for s in u.samples]
    pictures = {(data, p.name): p for data, p in asked if p.digest}
    with writing(store.path):
        return save_pictures(store.path, groups.values(), pictures)
