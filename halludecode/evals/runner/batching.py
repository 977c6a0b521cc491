"""Turns samples into batches of requests, and answers into lines of the run folder.

Batches are whole pictures, so that questions about one picture are neighbours and the engine can
reuse the picture's prefix; in greedy decoding those of all benchmarks that ask for answers of one
kind, such as POPE's and MME's. They are a function of the sample list alone; a resumed run repeats
an unfinished batch whole, and so gives each answer the company it had. In greedy decoding, equal
(picture, prompt) requests are answered once and shared: POPE's splits have their positive questions
in common.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import (
    HalluDecodeError,
    OutOfMemory,
)
from halludecode.engines.api import FATAL, Output, Request, Sampling
from halludecode.evals.benchmarks.answer_file import answered
from halludecode.evals.data.run_files import Key
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample
from halludecode.evals.presets import Preset
from halludecode.evals.runner.run_folder import RunStore
from halludecode.testbed.assets import MODELS

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark

# Requests handed to an engine at once, which splits them into forward batches itself; vLLM fills
# its own scheduler and wants more. A killed run loses at most this much.
BATCH = {"hf": 64, "vllm": 256, "server": 256}
HOPELESS = 2  # whole batches in a row without memory for a single request: the run ends


@dataclass(frozen=True)
class Ask:
    """One request to the engine, and the samples its answer belongs to."""

    prompt: str
    picture: EvalImage
    takers: tuple[tuple[EvalUnit, Sample], ...]


@dataclass(frozen=True)
class Setup:
    """Everything of a run that is known before its first answer."""

    engine: Any
    model: str  # as the user named it
    plans: Mapping[str, Any]  # spec as given -> compiled plan, canonical strings distinct
    units: Sequence[EvalUnit]
    benchmarks: Mapping[str, Benchmark]
    presets: Mapping[str, tuple[str, Preset]]
    sampling: Mapping[str, Sampling]  # by `Benchmark.kind`
    seed: int
    limit: int | None
    batch: int
    controls: Mapping[str, Any] = field(default_factory=dict)  # canonical -> `controls_of` it
    answers: str = "as_written"  # or "final"; see `data.final_answer`
    call: Mapping[str, Any] = field(default_factory=dict)  # the options, for `reproduce`
    together: bool = False  # all plans are asked a batch before the next one
    load: Mapping[str, Any] = field(default_factory=dict)  # what the model was loaded with
    shard: tuple[int, int] | None = None  # (k, n): every n-th picture from the k-th on is asked

    def jobs(self) -> Iterable[tuple[str, Any, list[Ask]]]:
        """(kind, plan, batch) in the order they are worked through."""
        for plan in self.plans.values():
            for kind, units in self._grouped():
                share = self.sampling[kind].temperature == 0
                for batch in plan_batches(units, share=share, size=self.batch):
                    yield kind, plan, batch

    def words(self, kind: str) -> tuple[str, ...]:
        """The two words that answers of a kind are read by; () for none."""
        return next(b.words(kind) for b in self.benchmarks.values() if kind in b.kinds())

    def _grouped(self) -> list[tuple[str, list[EvalUnit]]]:
        """Units that are asked together, with a kind all their answers could be of.

        Those with answers of several kinds are split. Sampled answers stay by kind, as what is
        drawn for one may depend on what is asked before it.
        """
        groups: dict[Any, tuple[str, list[EvalUnit]]] = {}
        for unit in of_shard(self.units, self.shard):
            kinds: dict[str, list[Sample]] = {}
            for sample in unit.samples:
                kinds.setdefault(unit.benchmark.kind(sample), []).append(sample)
            for kind, samples in kinds.items():
                part = unit if len(kinds) == 1 else replace(unit, samples=tuple(samples))
                sampling = self.sampling[kind]
                alike = kind if sampling.temperature else (sampling, self.words(kind))
                groups.setdefault((alike, unit.data), (kind, []))[1].append(part)
        return list(groups.values())

    def rounds(self) -> Iterable[tuple[str, list[Any], list[Ask]]]:
        """`jobs`, with all plans that are asked a batch at the same time."""
        if not self.together:
            yield from ((kind, [plan], batch) for kind, plan, batch in self.jobs())
            return
        plans = list(self.plans.values())
        first = replace(self, plans={"": plans[0]})
        yield from ((kind, plans, batch) for kind, _, batch in first.jobs())


def of_shard(units: Sequence[EvalUnit], shard: tuple[int, int] | None) -> Sequence[EvalUnit]:
    """The units with every n-th picture of a source alone, from the k-th on, counted from 1.

    A picture's questions stay together, in whatever split they are, so a shard encodes it once.
    """
    if shard is None:
        return units
    (first, count), numbers = shard, dict[tuple[str, str], int]()
    seen: dict[str, int] = {}

    def mine(unit: EvalUnit, sample: Sample) -> bool:
        key = (unit.data, sample.picture.digest or sample.picture.name)
        if key not in numbers:
            seen[unit.data] = numbers[key] = seen.get(unit.data, -1) + 1
        return numbers[key] % count == first - 1

    return [replace(u, samples=tuple(s for s in u.samples if mine(u, s))) for u in units]


def plan_batches(
    units: Sequence[EvalUnit], *, share: bool = True, size: int = 64
) -> list[list[Ask]]:
    """Batches of whole pictures with at least ``size`` requests each (the last may have fewer).

    Args:
        units: Units of one kind and source.
        share: Ask equal (picture, prompt) requests once.
        size: Requests a batch is filled up to.
    """
    pictures: dict[str, dict[Any, list[tuple[EvalUnit, Sample]]]] = {}
    for unit in units:
        for sample in unit.samples:
            key = sample.prompt if share else (sample.prompt, unit.key, sample.id)
            # Questions without a picture are kept apart by what its name says in its place.
            asked = pictures.setdefault(sample.picture.digest or sample.picture.name, {})
            asked.setdefault(key, []).append((unit, sample))
    batches: list[list[Ask]] = [[]]
    for asked in pictures.values():
        if len(batches[-1]) >= size:
            batches.append([])
        for takers in asked.values():
            sample = takers[0][1]
            batches[-1].append(Ask(sample.prompt, sample.picture, tuple(takers)))
    return [batch for batch in batches if batch]


def answer_all(setup: Setup, store: RunStore, progress: bool) -> None:
    """Answers what the folder lacks, batch by batch, with a progress bar on standard error."""
    from tqdm import tqdm

    jobs = list(setup.rounds())
    total, hopeless = sum(len(batch) * len(plans) for _, plans, batch in jobs), 0
    with tqdm(total=total, unit="answer", disable=not progress, dynamic_ncols=True) as bar:
        for _, group in groupby(jobs, lambda job: (job[0], job[1][0].canonical)):
            with threads_for(setup.model):
                for kind, plans, batch in group:
                    few = plans[0].canonical.split("(")[0] if len(plans) == 1 else len(plans)
                    bar.set_description(f"{few} {_asked_for(batch)}")
                    full = _answer_batch(setup, store, kind, plans, batch)
                    hopeless = hopeless + 1 if full else 0
                    if full and hopeless == HOPELESS:
                        raise full
                    bar.update(len(batch) * len(plans))


def _asked_for(batch: Sequence[Ask]) -> str:
    """Tasks and source of a batch."""
    units = [unit for ask in batch for unit, _ in ask.takers]
    return f"{', '.join(dict.fromkeys(unit.task for unit in units))} {units[0].data}"


@contextmanager
def threads_for(model: str) -> Iterator[None]:
    """As many torch threads as are faster right now, for the embedded model.

    It is so small that on a busy machine threads that wait for one another make it several times
    slower, while on idle cores two are 1.7 times as fast as one; so both are timed on a product of
    its size. Its float32 results do not depend on the choice (checked bit for bit, one and two).
    """
    if model not in MODELS:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_faster(1, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _faster(few: int, many: int) -> int:
    """``many`` threads if they are clearly faster than ``few`` at this moment."""
    import torch

    if many <= few:
        return few
    a, b = torch.ones(64 * 115, 256), torch.ones(256, 512)
    best: dict[int, float] = {}
    for _ in range(3):
        for threads in (few, many):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            a @ b
            best.setdefault(threads, 0.0)
            best[threads] += time.perf_counter() - start
    return many if best[many] < 0.8 * best[few] else few


def _answer_batch(
    setup: Setup, store: RunStore, kind: str, plans: Sequence[Any], batch: list[Ask]
) -> OutOfMemory | None:
    """Answers a batch whole unless every request of it that can be answered has been.

    Returns:
        The error, if memory was too small for every request of it; else None.
    """
    missing = {
        plan.canonical: [a for a in batch if any(k not in store.done for k in _keys(a, plan))]
        for plan in plans
    }
    plans = [plan for plan in plans if missing[plan.canonical]]
    if not plans:
        return None
    requests, failed = requests_of(batch, encoded=setup.engine.takes_bytes)
    readable = [ask for ask in batch if ask.picture.digest not in failed]
    words = setup.words(kind)
    asked = [
        plan
        for plan in plans
        if any(ask.picture.digest not in failed for ask in missing[plan.canonical])
    ]
    given = ([requests[id(ask)] for ask in readable], setup.sampling[kind], words)
    answers: dict[str, list[Any]] = {plan.canonical: [] for plan in plans}
    answers |= generate_settings(setup.engine, [plan.canonical for plan in asked], *given)
    for plan in plans:
        outcomes = [(a, failed[a.picture.digest]) for a in batch if a.picture.digest in failed]
        outcomes += zip(readable if plan in asked else [], answers[plan.canonical], strict=True)
        _keep(setup, store, plan.canonical, outcomes, words)
    full = [answer for each in answers.values() for answer in each]
    if full and all(isinstance(answer, OutOfMemory) for answer in full):
        return full[0]
    return None


def _keep(
    setup: Setup, store: RunStore, strategy: str, outcomes: Iterable[Any], words: Sequence[str]
) -> None:
    """Appends the lines of (ask, output or error)."""
    lines, errors = [], []
    for ask, outcome in outcomes:
        for unit, sample in ask.takers:
            head = _head(unit, sample, strategy)
            if isinstance(outcome, HalluDecodeError):
                error = type(outcome).__name__
                errors.append({**head, "kind": error, "error": str(outcome)})
            else:
                lines.append({**head, **_answer(unit, sample, outcome, words, setup.answers)})
    store.append(lines)
    store.append_errors(errors)


def generate_settings(
    engine: Any,
    strategies: Sequence[str],
    requests: list[Request],
    sampling: Sampling,
    words: Sequence[str],
) -> dict[str, list[Output | HalluDecodeError]]:
    """One output or error per strategy and request; several share what they can.

    Raises:
        HalluDecodeError: One of `FATAL`, which would repeat for every sample.
    """
    if len(strategies) == 1:
        found = [generate_each(engine, requests, strategies[0], sampling, words)]
    else:
        found = engine.generate_settings(requests, strategies, sampling, score_words=words)
    for error in (outcome for each in found for outcome in each if isinstance(outcome, FATAL)):
        raise error
    return dict(zip(strategies, found, strict=True))


def _keys(ask: Ask, plan: Any) -> list[Key]:
    return [(*unit.key, plan.canonical, sample.id) for unit, sample in ask.takers]


def requests_of(
    batch: list[Ask], *, encoded: bool = False
) -> tuple[dict[int, Request], dict[str, HalluDecodeError]]:
    """Requests by the identity of their ask, and errors by digest of undecodable pictures.

    Args:
        batch: What is asked.
        encoded: Hand pictures on as the bytes of their files.
    """
    decoded: dict[str, Any] = {}
    failed: dict[str, HalluDecodeError] = {}
    for ask in batch:
        digest = ask.picture.digest
        if digest not in decoded and digest not in failed:
            try:
                shown = ask.picture.all if digest else ()
                found = tuple(picture.load() for picture in shown)  # also to see that it can be
                decoded[digest] = tuple(p.read() for p in shown) if encoded else found
            except HalluDecodeError as error:
                failed[digest] = error
    asks = [ask for ask in batch if ask.picture.digest in decoded]
    return {id(a): Request(a.prompt, decoded[a.picture.digest]) for a in asks}, failed


def generate_each(
    engine: Any, requests: list[Request], strategy: str, sampling: Sampling, words: Sequence[str]
) -> list[Output | HalluDecodeError]:
    """One output or error per request.

    Raises:
        HalluDecodeError: One of `FATAL`, which would repeat for every sample.
    """
    if not requests:
        return []
    outcomes = engine.generate_each(requests, strategy, sampling, score_words=words)
    for error in (outcome for outcome in outcomes if isinstance(outcome, FATAL)):
        raise error
    return outcomes


def _head(unit: EvalUnit, sample: Sample, strategy: str) -> dict[str, Any]:
    return {
        "id": sample.id,
        "task": unit.task,
        "data": unit.data,
        "split": unit.split,
        "strategy": strategy,
        "prompt": sample.prompt,
        "image": sample.picture.name,
        "data_hash": sample.digest,
    }


def _answer(
    unit: EvalUnit, sample: Sample, output: Output, words: Sequence[str], rule: str
) -> dict[str, Any]:
    timings, scores = output.timings, output.scores
    first, second = (scores.get(word) for word in words) if words else (None, None)
    line = {
        **answered(unit.benchmark, sample, output.text, rule),
        "margin": None if first is None or second is None else first - second,
        "tokens": timings.tokens or len(output.token_ids),
        "ms": round(timings.prepare_ms + timings.prefill_ms + timings.decode_ms, 3),
        "effect": output.effect,
        "finish": output.finish_reason,
    }
    decided = {"decided": True} if output.decided and line["margin"] is not None else {}
    warned = {"warnings": list(output.warnings)} if output.warnings else {}
    return {**line, **decided, **warned}
