"""What a run would cost, from a few of its own requests asked in its own way (``eval --dry-run``).

What the requests of a run have in common decides their price: those about one picture share its
prefix, a strategy looks at a question or a picture once and remembers, a batch of captions lasts as
long as its longest. A probe therefore takes whole pictures from all over a job, in batches as large
as the run's are on average, picture files and all. Where a run asks its questions again about other
pictures, a second probe does so too, and the two are weighed by the run's share of new questions.
Every strategy is asked about the same pictures, in the order of the run, and so finds in the
engine's memories what it will find there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from math import ceil
from typing import Any

from halludecode.engines.api import Sampling
from halludecode.evals.runner.batching import (
    Ask,
    Setup,
    generate_each,
    requests_of,
    threads_for,
)
from halludecode.evals.runner.run import prepare

SHARE = 0.05  # of a job's requests in one probe, but at least one forward batch
REMEMBERED = 256  # pictures an engine keeps preprocessed
CHUNK = 32  # requests in a forward batch of an engine that does not say
REPEATED = 0.2  # share of repeated questions from which a second probe pays

Clock = Callable[[], float]
Job = tuple[str, list[list[Ask]]]  # kind, batches of one source


class Forecast(dict[str, Any]):
    """Rows, passes and predicted seconds of one strategy; as text, one phrase."""

    def __str__(self) -> str:
        return (
            f"{self['cost']}; {self['requests']} requests for {self['samples']} samples, "
            f"about {_duration(self['seconds'])}"
        )


def dry_run(
    engine_or_loader: Any, *, clock: Clock = time.perf_counter, **options: Any
) -> dict[str, Any]:
    """Predicts a run by timing a few requests per strategy, task and source; writes nothing.

    Args:
        engine_or_loader: As for `run_eval`.
        clock: Seconds, from any point on.
        **options: Those of `run_eval` except ``output``, ``fresh`` and ``progress``.

    Returns:
        Strategy as given to a `Forecast` (``canonical``, ``rows``, ``cost``, ``requests``,
        ``samples``, ``probed``, ``seconds``), then ``total_seconds`` and ``note``. Times are for
        this machine.

    Raises:
        HalluDecodeError: As `run_eval`, for whatever can be known before the run.
    """
    setup = prepare(engine_or_loader, **options)
    samples = sum(len(unit.samples) for unit in setup.units)
    forecast: dict[str, Any] = {}
    for spec, plan in setup.plans.items():
        jobs = _jobs(setup, plan)
        with threads_for(setup.model):
            seconds, probed = Prober(setup, plan, clock).seconds(jobs)
        forecast[spec] = Forecast(
            canonical=plan.canonical,
            rows=list(plan.rows),
            cost=str(plan.cost),
            requests=sum(len(batch) for _, batches in jobs for batch in batches),
            samples=samples,
            probed=probed,
            seconds=round(seconds, 1),
        )
    forecast["total_seconds"] = round(sum(f["seconds"] for f in forecast.values()), 1)
    probed = sum(f["probed"] for f in forecast.values() if isinstance(f, Forecast))
    forecast["note"] = (
        f"extrapolated from {probed} of the run's own requests on this machine; loading the model "
        "and scoring come on top"
    )
    return forecast


def _jobs(setup: Setup, plan: Any) -> list[Job]:
    """A plan's batches by kind and source, in the order of the run."""
    mine = [(kind, batch) for kind, p, batch in setup.jobs() if p is plan]
    each = groupby(mine, lambda job: (job[0], job[1][0].takers[0][0].data))
    return [(kind, [batch for _, batch in group]) for (kind, _), group in each]


class Prober:
    """Times requests of one strategy.

    Args:
        setup: The run.
        plan: Its strategy.
        clock: Seconds.
    """

    def __init__(self, setup: Setup, plan: Any, clock: Clock) -> None:
        self.setup, self.plan, self.clock = setup, plan, clock
        self._told: set[str] = set()  # questions asked in probes
        self._known: set[str] = set()  # questions the run has asked before the job
        self._shown: dict[str, str] = {}  # pictures of earlier jobs, and a question about each
        self._probed = 0

    def seconds(self, jobs: Sequence[Job]) -> tuple[float, int]:
        """Seconds of all jobs, and how many requests were timed for it."""
        if jobs:  # first calls allocate and compile; the last picture is unlikely in a probe
            kind, batches = jobs[0]
            last = [ask for ask in batches[-1] if _name(ask) == _name(batches[-1][-1])]
            self._ask(kind, last[: self._chunk()])
        return sum(self._job(*job) for job in jobs), self._probed

    def _job(self, kind: str, batches: list[list[Ask]]) -> float:
        asks = [ask for batch in batches for ask in batch]
        new = len({ask.prompt for ask in asks} - self._known) / len(asks)
        self._known |= {ask.prompt for ask in asks}
        pictures = [list(group) for _, group in groupby(asks, lambda ask: _name(ask))]
        size = probe_size([len(batch) for batch in batches], self._chunk())
        count = max(1, round(size * len(pictures) / len(asks)))
        first, second = spread(pictures, count)
        self._recall(kind, first + second)
        self._shown |= {_name(ask): ask.prompt for ask in asks}
        fresh, fresh_share = self._timed(kind, _flat(first)[: 2 * size])
        if not second or fresh_share - new < REPEATED:
            return fresh * len(asks)
        again, again_share = self._timed(kind, _swapped(first, second)[: 2 * size])
        weight = (new - again_share) / (fresh_share - again_share)
        weight = min(1.0, max(0.0, weight))
        return (weight * fresh + (1 - weight) * again) * len(asks)

    def _recall(self, kind: str, pictures: list[list[Ask]]) -> None:
        """Shows the engine, untimed, those pictures of a job that it would remember by then."""
        if len(self._shown) > REMEMBERED:
            return
        told = [asks[0] for asks in pictures if _name(asks[0]) in self._shown]
        short = replace(self.setup.sampling[kind], max_new_tokens=1)
        self._ask(kind, [replace(ask, prompt=self._shown[_name(ask)]) for ask in told], short)

    def _timed(self, kind: str, asks: list[Ask]) -> tuple[float, float]:
        """Seconds a request, and the share of questions not asked in a probe before."""
        told = {ask.prompt for ask in asks}
        share = len(told - self._told) / len(asks)
        start = self.clock()
        self._ask(kind, asks)
        spent = self.clock() - start
        self._told |= told
        self._probed += len(asks)
        return spent / len(asks), share

    def _ask(self, kind: str, asks: list[Ask], sampling: Sampling | None = None) -> None:
        encoded = self.setup.engine.takes_bytes
        requests, _ = requests_of(asks, encoded=encoded)
        how = sampling or self.setup.sampling[kind], self.setup.words(kind)
        generate_each(self.setup.engine, list(requests.values()), self.plan.canonical, *how)

    def _chunk(self) -> int:
        return self.setup.engine.batch_size or CHUNK


def probe_size(batches: Sequence[int], chunk: int) -> int:
    """Requests of a probe: `SHARE` of a job in forward batches of the job's average size.

    A time that is linear in the size of a forward batch is then extrapolated without error, however
    many small ones the job's batches leave over.

    Args:
        batches: Requests in each batch of the job.
        chunk: Most requests in a forward batch.
    """
    forwards, total = sum(ceil(size / chunk) for size in batches), sum(batches)
    return max(1, round(max(1, int(SHARE * forwards)) * total / forwards))


def spread(pictures: Sequence[list[Ask]], count: int) -> tuple[list[list[Ask]], list[list[Ask]]]:
    """Two times ``count`` pictures from all over a job, alternating; the second may be empty."""
    wanted = min(2 * count, len(pictures))
    if wanted < 2 * count:
        return list(pictures[:count]), []
    chosen = [pictures[(2 * i + 1) * len(pictures) // (2 * wanted)] for i in range(wanted)]
    return chosen[::2], chosen[1::2]


def _swapped(asked: list[list[Ask]], others: list[list[Ask]]) -> list[Ask]:
    """The questions of the first pictures about the others."""
    return [
        replace(ask, picture=other[0].picture)
        for asks, other in zip(asked, others, strict=True)
        for ask in asks
    ]


def _flat(pictures: list[list[Ask]]) -> list[Ask]:
    return [ask for asks in pictures for ask in asks]


def _name(ask: Ask) -> str:
    return ask.picture.digest or ask.picture.name


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
