"""What a run would cost, from a handful of its own requests (``eval --dry-run``)."""

from __future__ import annotations

import time
from typing import Any

from halludecode.evals.batches import (
    Ask,
    Setup,
    generate_each,
    requests_of,
    threads_for,
    words_of,
)
from halludecode.evals.run import prepare

PROBE = 8  # requests timed per strategy, task and source


class Forecast(dict[str, Any]):
    """Rows, passes and predicted seconds of one strategy; as text, one phrase."""

    def __str__(self) -> str:
        return (
            f"{self['cost']}; {self['requests']} requests for {self['samples']} samples, "
            f"about {_duration(self['seconds'])}"
        )


def dry_run(engine_or_loader: Any, **options: Any) -> dict[str, Any]:
    """Predicts a run by timing a few requests per strategy, task and source; writes nothing.

    Args:
        engine_or_loader: As for `run_eval`.
        **options: Those of `run_eval` except ``output``, ``fresh`` and ``progress``.

    Returns:
        Strategy as given to a `Forecast` (``canonical``, ``rows``, ``cost``, ``requests``,
        ``samples``, ``seconds``), then ``total_seconds`` and ``note``. Times are for this machine.

    Raises:
        HalluDecodeError: As `run_eval`, for whatever can be known before the run.
    """
    setup = prepare(engine_or_loader, **options)
    samples = sum(len(unit.samples) for unit in setup.units)
    forecast: dict[str, Any] = {}
    jobs = list(setup.jobs())
    for spec, plan in setup.plans.items():
        mine = [(task, batch) for task, p, batch in jobs if p is plan]
        with threads_for(setup.model):
            seconds = _seconds(setup, plan, mine)
        forecast[spec] = Forecast(
            canonical=plan.canonical,
            rows=list(plan.rows),
            cost=str(plan.cost),
            requests=sum(len(batch) for _, batch in mine),
            samples=samples,
            seconds=round(seconds, 1),
        )
    forecast["total_seconds"] = round(sum(f["seconds"] for f in forecast.values()), 1)
    forecast["note"] = (
        f"extrapolated from up to {PROBE} requests per strategy, task and source on this machine; "
        "loading the model and scoring come on top"
    )
    return forecast


def _seconds(setup: Setup, plan: Any, jobs: list[tuple[str, list[Ask]]]) -> float:
    total = 0.0
    for key in dict.fromkeys((task, _source(batch)) for task, batch in jobs):
        batches = [batch for task, batch in jobs if (task, _source(batch)) == key]
        probe = batches[0][:PROBE]
        requests, _ = requests_of(probe)
        asked = list(requests.values())
        generate = (plan.canonical, setup.sampling[key[0]], words_of(key[0]))
        generate_each(setup.engine, asked[:1], *generate)  # first calls allocate and compile
        start = time.perf_counter()
        generate_each(setup.engine, asked, *generate)
        each = (time.perf_counter() - start) / max(1, len(asked))
        total += each * sum(len(batch) for batch in batches)
    return total


def _source(batch: list[Ask]) -> str:
    return batch[0].takers[0][0].data


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
