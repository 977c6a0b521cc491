"""A sweep: every setting on development pictures, the best one of them, once, on other pictures.

The folder holds two run folders, ``dev`` (greedy and all settings) and ``test`` (greedy and the
chosen one), ``sweep.json``, drawings of every parameter, ``best.yaml`` for `eval --config` and
``presets/NAME.yaml`` as it stands in ``configs/strategies``. What was ever tried in it counts: a
later call with other settings is corrected for the earlier ones, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.data.run_files import read_json, write_json
from halludecode.evals.data.samples import EvalUnit
from halludecode.evals.load import TESTBED, check_places
from halludecode.evals.results.build import BASELINE, MEAN
from halludecode.evals.runner.batching import Setup, generate_settings, requests_of, threads_for
from halludecode.evals.runner.run import prepare, run_setup
from halludecode.evals.runner.run_folder import check_folder, writing
from halludecode.evals.sweep.grid import Setting, settings
from halludecode.evals.sweep.plots import check, draw
from halludecode.evals.sweep.presets import write_presets
from halludecode.testbed.assets import MODELS

PROBED = 64  # requests on which the price of all settings is held against that of one


def run_sweep(
    engine_or_loader: Any,
    *,
    tasks: Any,
    strategies: Sequence[str],
    output: str | Path,
    dev: Sequence[str] = (),
    data: Sequence[str] = (),
    metric: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Tries every setting on ``dev``, then the best of them and greedy on ``data``.

    Args:
        engine_or_loader: As for `run_eval`, as is the rest.
        tasks: Benchmarks.
        strategies: Specs with braces, see `grid`.
        output: The sweep's folder; what it holds of the same sweep is not asked again.
        dev: Sources of the development pictures, or one share of ``data``'s pictures between 0 and
            1; by default testbed-dev-iid for testbed-iid, and so on.
        data: Sources of the pictures that the best setting is reported on.
        metric: What is chosen by, as TASK.METRIC or METRIC of the first task; by default the first
            headline of the first task.
        fresh: Start over.
        progress: Show progress bars.
        **options: Of `runner.run.prepare`.

    Returns:
        The content of ``sweep.json``.

    Raises:
        HalluDecodeError: As `run_eval`; a source is on both sides, or settings do not fit.
    """
    output, tried = Path(output), settings(strategies)
    sources, apart, share = _sources(engine_or_loader, list(dev), list(data))
    check_places([*apart, *sources], options.get("images"), options.get("annotations"))
    check()
    check_folder(output)
    specs = [BASELINE, *(s.spec for s in tried if s.strategy != BASELINE)]
    if len(specs) < 2:
        raise InvalidParameter("A sweep needs a strategy beside greedy, such as vcd(alpha={1,2}).")
    given = {"tasks": tasks, **options}
    on_dev = prepare(engine_or_loader, strategies=specs, data=apart, **given)
    task, name = _metric(on_dev, metric)
    on_test = prepare(on_dev.engine, strategies=[BASELINE], data=sources, **given)
    on_test = replace(on_test, model=on_dev.model)
    if share is not None:
        on_dev, on_test = (
            # A part of the pictures is not what any call of `eval` asks about.
            replace(setup, units=_share(setup.units, share, inside=inside), call={})
            for setup, inside in ((on_dev, True), (on_test, False))
        )
    _check_apart(on_dev.units, on_test.units)
    on_dev = replace(on_dev, together=True)
    price = _price(on_dev, output / "dev") if fresh or not (output / "dev").exists() else None
    first = run_setup(on_dev, output / "dev", fresh=fresh, progress=progress)
    found = _choose(first.results, first.run, on_dev, tried, task, name)
    best = found["best"]["strategy"]
    plan = on_test.engine.plan(best)
    asked = {"call": {**on_test.call, "strategies": [BASELINE, found["best"]["spec"]]}}
    asked = asked if on_test.call else {}
    on_test = replace(on_test, plans={**on_test.plans, found["best"]["spec"]: plan}, **asked)
    last = run_setup(on_test, output / "test", fresh=fresh, progress=progress)
    found |= {"test": _tested(last.results, best, task, name, found["tried"])}
    found |= {"dev_data": list(apart) if share is None else f"{share:g} of the pictures"}
    found |= {"failed": first.failed + last.failed, "price": price or _earlier_price(output)}
    with writing(output):
        write_json(output / "sweep.json", found)
        named = list(on_test.benchmarks) if isinstance(tasks, str) else tasks
        write_presets(output, found, last.run, named, sources, share)
        draw(output, found)
    return found


# Data -------------------------------------------------------------------------------------------


def _sources(
    engine_or_loader: Any, dev: list[str], data: list[str]
) -> tuple[list[str], list[str], float | None]:
    """Sources to report on, sources to choose on, and the share where both are the same."""
    model = _model(engine_or_loader)
    if not data and model in MODELS:
        data = ["testbed-iid"]
    if len(dev) == 1 and _is_number(dev[0]):
        share = float(dev[0])
        if not 0 < share < 1:
            raise InvalidParameter(f"--dev {dev[0]}: a share of the pictures is above 0, below 1.")
        return data, data, share
    if not dev:
        dev = [source.replace("testbed-", "testbed-dev-", 1) for source in data]
        if not data or not all(d in TESTBED and d not in data for d in dev):
            raise InvalidParameter(
                "Which pictures are the settings chosen on? Give --dev with other data than --data,"
                " or a share of its pictures such as --dev 0.3."
            )
    if both := set(dev) & set(data):
        raise InvalidParameter(
            f"{sorted(both)[0]} is given with --dev and with --data: a setting is chosen on other "
            "pictures than it is reported on; a share such as --dev 0.3 splits one source."
        )
    return data, dev, None


def _model(engine_or_loader: Any) -> str:
    if isinstance(engine_or_loader, partial) and engine_or_loader.args:
        return str(engine_or_loader.args[0])
    return str(getattr(engine_or_loader, "model_id", ""))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _share(units: Sequence[EvalUnit], share: float, *, inside: bool) -> list[EvalUnit]:
    """The samples of this share of the groups, or the others; a picture is on one side for ever.

    A group is what is judged together, mostly the questions about one picture.
    """

    def chosen(text: str) -> bool:
        return int(sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < share

    parts: list[EvalUnit] = []
    for unit in units:
        kept = [s for s in unit.samples if chosen(s.group or s.picture.digest) == inside]
        if not kept:
            side = "--dev" if inside else "--data"
            raise InvalidData(
                f"{side}: no picture of {unit.task} on {unit.data} falls on this side of "
                f"{share:g}; take another share or more pictures."
            )
        parts.append(replace(unit, samples=tuple(kept)))
    return parts


def _check_apart(dev: Sequence[EvalUnit], test: Sequence[EvalUnit]) -> None:
    """Refuse pictures that settings would be chosen and reported on."""
    seen, asked = (
        {s.picture.digest for unit in units for s in unit.samples if s.picture.digest}
        for units in (dev, test)
    )
    if both := seen & asked:
        raise InvalidData(
            f"{len(both)} picture(s) are among --dev and --data, though under other names; a "
            "setting must be reported on pictures that it was not chosen on."
        )


# Choosing ---------------------------------------------------------------------------------------


def _metric(setup: Setup, asked: str | None) -> tuple[str, str]:
    """The task and the metric that settings are chosen by."""
    task, _, name = (asked or "").rpartition(".")
    task = task or next(iter(setup.benchmarks))
    if task not in setup.benchmarks:
        known = ", ".join(setup.benchmarks)
        raise InvalidParameter(f"--metric {asked}: {task!r} is not among the tasks {known}.")
    benchmark = setup.benchmarks[task]
    names = [m.name for m in benchmark.metrics]
    name = name or next(iter(benchmark.headlines()), names[0])
    if name not in names or benchmark.metric(name).lower_is_better is None:
        fit = ", ".join(m.name for m in benchmark.metrics if m.lower_is_better is not None)
        raise InvalidParameter(f"--metric {asked or name}: choose {task} by one of {fit}.")
    return task, name


def _entries(results: Mapping[str, Any], part: str, task: str) -> dict[tuple[str, str], Any]:
    """Entries by strategy and source; of several splits the mean."""
    found: dict[tuple[str, str], Any] = {}
    for entry in results[part]:
        key = entry["strategy"], entry["data"]
        if entry["task"] == task and (entry["split"] == MEAN or key not in found):
            found[key] = entry
    return found


def _choose(
    results: Mapping[str, Any],
    run: Mapping[str, Any],
    setup: Setup,
    tried: Sequence[Setting],
    task: str,
    name: str,
) -> dict[str, Any]:
    """All settings with what they got; the best by the mean over sources."""
    metric = benchmark_named(task).metric(name)
    every = [s for s in run["strategies"] if s != BASELINE]
    values, gaps = (_entries(results, part, task) for part in ("runs", "differences"))
    sources = list(dict.fromkeys(unit.data for unit in setup.units if unit.task == task))
    rows: list[dict[str, Any]] = []
    for setting in tried:
        if setting.strategy == BASELINE:
            continue
        dev: dict[str, Any] = {}
        for source in sources:
            value = values[setting.strategy, source]["metrics"].get(name)
            gap = gaps.get((setting.strategy, source), {}).get("metrics", {}).get(name)
            if value and gap:
                corrected = {"p_bonferroni": min(1.0, gap["p"] * len(every))}
                dev[source] = {**value, "difference": {**_only(gap), **corrected}}
        rows.append({**vars(setting), "dev": dev})
    whole = [row for row in rows if len(row["dev"]) == len(sources)]
    if not whole:
        raise InvalidData(f"No setting has a {task} {name} on every development source.")
    sign = -1 if metric.lower_is_better else 1
    best = max(whole, key=lambda row: sign * sum(v["value"] for v in row["dev"].values()))
    greedy = {source: values[BASELINE, source]["metrics"][name] for source in sources}
    return {
        "schema": 1,
        "task": task,
        "metric": name,
        "lower_is_better": metric.lower_is_better,
        "tried": len(every),
        "greedy": greedy,
        "settings": rows,
        "best": best,
    }


def _only(gap: Mapping[str, Any]) -> dict[str, Any]:
    return {key: gap[key] for key in ("value", "low", "high", "p")}


def _tested(
    results: Mapping[str, Any], best: str, task: str, name: str, tried: int
) -> dict[str, Any]:
    """What the best setting and greedy got on the pictures that are reported."""
    values, gaps = (_entries(results, part, task) for part in ("runs", "differences"))
    found: dict[str, Any] = {}
    for (strategy, source), gap in gaps.items():
        if strategy == best and (d := gap["metrics"].get(name)):
            corrected = {"p_bonferroni": min(1.0, d["p"] * tried)}
            found[source] = {
                "best": values[best, source]["metrics"][name],
                "greedy": values[BASELINE, source]["metrics"][name],
                "difference": {**_only(d), **corrected},
            }
    return found


# What it costs ----------------------------------------------------------------------------------


def _price(setup: Setup, folder: Path) -> dict[str, Any] | None:
    """Processor seconds of all settings on a batch, and of the middle one alone, both from cold."""
    kind, plans, batch = next(iter(setup.rounds()))
    plans = [plan for plan in plans if plan.canonical != BASELINE]
    if len(plans) < 2 or not hasattr(setup.engine, "clear_caches"):
        return None
    readable, _ = requests_of(batch[:PROBED], encoded=setup.engine.takes_bytes)
    requests = list(readable.values())
    if not requests:
        return None
    given = (setup.sampling[kind], setup.words(kind))
    one = [plans[len(plans) // 2].canonical]
    spent: dict[str, float] = {}
    with threads_for(setup.model):
        generate_settings(setup.engine, one, requests[:1], *given)  # what only the first call costs
        for what, names in (("one", one), ("all", [plan.canonical for plan in plans])):
            setup.engine.clear_caches()
            start = time.process_time()
            generate_settings(setup.engine, names, requests, *given)
            spent[what] = time.process_time() - start
    setup.engine.clear_caches()
    return {
        "settings": len(plans),
        "requests": len(requests),
        "seconds_of_one": round(spent["one"], 3),
        "seconds_of_all": round(spent["all"], 3),
        "ratio": round(spent["all"] / spent["one"], 2) if spent["one"] else None,
    }


def _earlier_price(output: Path) -> dict[str, Any] | None:
    """What an earlier call measured, as this one was not asked anything new."""
    file = output / "sweep.json"
    try:
        return read_json(file).get("price") if file.exists() else None
    except (InvalidData, json.JSONDecodeError):
        return None
