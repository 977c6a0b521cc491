"""Runs a model under several strategies over tasks and data sources, into a run folder.

How the answers are made is `batches`, how they are kept `store`, how they are scored `results`.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.engines.base import Sampling
from halludecode.evals import controls as hd_controls
from halludecode.evals.batches import BATCH, Setup, answer_all
from halludecode.evals.data_sources import Selection, load_units
from halludecode.evals.gallery import save_pictures
from halludecode.evals.results import Report, arrange, build_results
from halludecode.evals.store import RunStore
from halludecode.evals.task import TASKS, Preset, preset_for
from halludecode.evals.words import reader


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
        tasks: Of "pope", "chair", "mme".
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
    with RunStore(Path(output), *_recipe(setup), fresh=fresh) as store:
        _check_data(store, setup)
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
        tasks: Of "pope", "chair", "mme".
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
        tasks: Of "pope", "chair", "mme".
        strategies: Spec strings or strategies.
        data: Testbed names, folders or hub ids; for the testbed model ``testbed-iid`` by default.
        images: Folder of pictures (with ``annotations``, or replacing a data folder's own).
        annotations: POPE question file or COCO instances file.
        prompt_preset: A name of `task.PRESETS` or "testbed"; see `task.preset_for`.
        batch_size: Requests in one forward batch; None leaves the engine's own.
        seed: Seed of sampled decoding and of the bootstrap.
        temperature: Of all tasks; 0 is greedy.
        max_new_tokens: Of all tasks; None takes the preset's.
        controls: Also run what sampled results must be read against, see `evals.controls`; None is
            yes above temperature 0, where alone it tells something.
        **selection: ``limit`` (first N pictures per source and task, with all their questions),
            ``pope_splits`` (empty takes those there are), ``family`` and ``gt_family`` (CHAIR),
            ``columns`` (hub column map), ``testbed_images`` (pictures per testbed source).
    """
    limit = selection.get("limit")
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
    if batch_size is not None and hasattr(engine, "batch_size"):
        engine.batch_size = batch_size
    sampling = {
        task: Sampling(
            max_new_tokens=max_new_tokens or preset.tokens(task),
            temperature=temperature,
            seed=seed if temperature > 0 else None,
        )
        for task, (_, preset) in presets.items()
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
        batch=BATCH.get(getattr(engine, "name", ""), BATCH["hf"]),
        controls=hd_controls.record(engine, plans) if temperature > 0 else {},
    )


def _selection(
    tasks: Sequence[str],
    presets: Mapping[str, tuple[str, Preset]],
    limit: int | None = None,
    pope_splits: Sequence[str] = (),
    family: str = "wordnet",
    gt_family: str = "wordnet",
    columns: Mapping[str, str] | None = None,
    testbed_images: int = 500,
) -> Selection:
    families = {"family": family, "gt_family": gt_family}
    if "chair" in tasks:
        families["path"] = reader(family).path  # what this machine reads captions with
    plain = {task: preset for task, (_, preset) in presets.items()}
    return Selection(
        tuple(tasks), plain, limit, tuple(pope_splits), families, columns or {}, testbed_images
    )


def _sources(
    data: Sequence[str | Path], images: Any, annotations: Any, model: str
) -> list[str | Path]:
    if data or images is not None or annotations is not None:
        return list(data)
    if model != "testbed":
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
    return engine_or_loader if hasattr(engine_or_loader, "generate") else engine_or_loader()


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


def _recipe(setup: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all answers of the folder share, and the rest of ``run.json``."""
    described = dict(setup.engine.describe())
    identity = {
        "model": setup.model,
        "model_digest": described.pop("model_digest", None),
        "engine": described.pop("engine", getattr(setup.engine, "name", "hf")),
        "dtype": described.pop("dtype", None),
        "seed": setup.seed,
        "prompts": {
            task: {"preset": name, "template": preset.template(task)}
            for task, (name, preset) in setup.presets.items()
        },
        "sampling": {
            task: {"max_new_tokens": s.max_new_tokens, "temperature": s.temperature}
            for task, s in setup.sampling.items()
        },
        "chair": dict(setup.families) if "chair" in setup.presets else {},
    }
    data = {
        "/".join(part for part in unit.key if part): {
            "digest": unit.digest,
            "samples": len(unit.samples),
            "revision": unit.revision,
        }
        for unit in setup.units
    }
    recipe = {
        "strategies": {
            plan.canonical: {"spec": spec, **plan.describe(), **_controls(setup, plan)}
            for spec, plan in setup.plans.items()
        },
        "data": data,
        "limit": dict.fromkeys(setup.presets, setup.limit),
        "hardware": _hardware(str(described.pop("device", "cpu"))),
        "versions": {**_versions(), **described.pop("versions", {})},
        "model_facts": described,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return identity, recipe


def _controls(setup: Setup, plan: Any) -> dict[str, Any]:
    facts = setup.controls.get(plan.canonical)
    return {"controls": facts} if facts else {}


def _hardware(device: str) -> dict[str, Any]:
    name = None
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "device": device,
        "gpu": name,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def _versions() -> dict[str, str]:
    return {
        "halludecode": importlib.metadata.version("halludecode"),
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
    }


def _keep_pictures(store: RunStore, setup: Setup, strategies: Sequence[str]) -> None:
    """Copies the pictures that the report shows into the run folder."""
    keys = [(*u.key, name, s.id) for name in strategies for u in setup.units for s in u.samples]
    groups = arrange((store.done[key] for key in keys if key in store.done), setup.families)
    pictures = {(u.data, s.picture.name): s.picture for u in setup.units for s in u.samples}
    save_pictures(store.path, groups.values(), pictures)


def _check_data(store: RunStore, setup: Setup) -> None:
    """Answers kept from an earlier call must be to the very same questions."""
    for unit in setup.units:
        for plan in setup.plans.values():
            for sample in unit.samples:
                line = store.done.get((*unit.key, plan.canonical, sample.id))
                if line is not None and line["data_hash"] != sample.digest:
                    raise InvalidData(
                        f"{store.path}: sample {sample.id} of {unit.task} on {unit.data} was "
                        "answered for other data; choose another output folder or start over "
                        "with --fresh."
                    )


def dry_run(engine_or_loader: Any, **options: Any) -> dict[str, Any]:
    """Rows, passes and predicted time per strategy; see `halludecode.evals.forecast.dry_run`."""
    from halludecode.evals import forecast

    return forecast.dry_run(engine_or_loader, **options)
