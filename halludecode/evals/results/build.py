"""From lines of a run folder to numbers: metrics with intervals, pairs with differences.

Scores are computed from the lines alone, so that a run can be compared and reported where its data
are not. Lines are taken in the order of their ids: an interrupted run and an unbroken one give the
same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.fixed_answers import constant_answers, copied_answers
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.data.run_files import SCHEMA, Key
from halludecode.evals.results.paired import differences
from halludecode.evals.results.remarks import hidden
from halludecode.evals.statistics import intervals as stats

if TYPE_CHECKING:
    from rich.console import Group

    from halludecode.evals.benchmarks.base import Benchmark
    from halludecode.evals.data.samples import EvalUnit
    from halludecode.evals.statistics.score import Score

BASELINE = "greedy"
MEAN = "mean"  # the split of the mean over splits
Lines = Mapping[Any, Mapping[str, Any]]  # by sample id


@dataclass(frozen=True)
class Report:
    """What a run came to.

    Args:
        results: The content of ``results.json``.
        path: The run folder.
        run: The content of ``run.json``.
        failed: Samples that this call asked about and that have no answer, over all strategies.
        left_out: Samples that have one and are not scored, as others of their group have none.
        told: Sentences on how answers are read here.
        gone: Pictures that the report would show and that are not there any more.
    """

    results: dict[str, Any] = field(repr=False)
    path: Path
    run: dict[str, Any] = field(repr=False)
    failed: int = 0
    left_out: int = 0
    told: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def table(self) -> Group:
        """One small table per task and data source; see `terminal.results_tables`."""
        from rich.console import Group
        from rich.text import Text

        from halludecode.evals.results.terminal import results_tables

        return Group(results_tables(self.results, labels(self.run)), *map(Text, self.told))

    def to_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return self.results


def labels(run: Mapping[str, Any]) -> dict[str, str]:
    """Canonical strategy to the words it was asked for with."""
    return {name: info.get("spec", name) for name, info in run.get("strategies", {}).items()}


# Many answers -----------------------------------------------------------------------------------


@lru_cache(maxsize=2**18)
def _order(identifier: int | str) -> tuple[Any, ...]:
    """Ids in the order people count in: 2 before 10, also inside names."""
    if isinstance(identifier, int) and identifier >= 0:
        return ((0, identifier, ""),)
    parts = re.split(r"(\d+)", str(identifier))
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def score_lines(
    task: str, lines: Lines, recipe: Mapping[str, Any], max_words: int | None = None
) -> Score:
    """Scores the answers to one benchmark on one source and split.

    Args:
        task: Its name.
        lines: Lines of ``samples.jsonl`` by id; at least one.
        recipe: What ``run.json`` records of its parameters.
        max_words: Cut captions after this many white-space words.
    """
    return _scored(benchmark_named(task).recorded(recipe), lines, max_words)


def _scored(benchmark: Benchmark, lines: Lines, max_words: int | None) -> Score:
    ordered = [lines[i] for i in sorted(lines, key=_order)]
    cut = {} if max_words is None else {"max_words": max_words}
    return benchmark.score(ordered, **cut)


@dataclass
class Answers:
    """Answers to one benchmark on one source: lines by strategy, split and id.

    Args:
        task: The benchmark's name.
        data: Name of the source.
        families: What ``run.json`` records of its parameters, such as CHAIR's word families.
        lines: The lines.
    """

    task: str
    data: str
    families: Mapping[str, Any]
    lines: dict[str, dict[str | None, dict[Any, Mapping[str, Any]]]]
    # Reading captions takes seconds, and a baseline is needed beside every strategy.
    _scored: dict[Any, Score] = field(default_factory=dict, repr=False)
    _fixed: dict[Any, dict[str, dict[str, float]]] = field(default_factory=dict, repr=False)
    _shared: dict[Any, tuple[Any, dict[str | None, Lines]]] = field(
        default_factory=dict, repr=False
    )

    @cached_property
    def benchmark(self) -> Benchmark:
        """What the answers are to."""
        return benchmark_named(self.task).recorded(self.families)

    def scored_text(self, line: Mapping[str, Any]) -> str:
        """The part of an answer that is scored: captions may lose an unfinished sentence."""
        return self.benchmark.scored_text(line["answer"])

    def shared(
        self, strategy: str, like: str | None = None, other: Answers | None = None
    ) -> dict[str | None, Lines]:
        """Lines of every split that can be scored, in the order of their ids.

        Args:
            strategy: Whose answers.
            like: Only what this strategy answered too.
            other: Where ``like`` is to be found; None is here.
        """
        key = strategy, like, id(other or self)
        if key not in self._shared:
            self._shared[key] = other, self._common(strategy, like, other)
        return self._shared[key][1]

    def _common(
        self, strategy: str, like: str | None, other: Answers | None
    ) -> dict[str | None, Lines]:
        theirs = None if like is None else (other or self).lines.get(like, {})
        found: dict[str | None, Lines] = {}
        for split, lines in self.lines.get(strategy, {}).items():
            if theirs is not None:
                lines = {i: line for i, line in lines.items() if i in theirs.get(split, {})}
            if usable := self.benchmark.complete(lines):
                found[split] = {i: usable[i] for i in sorted(usable, key=_order)}
        return found

    def scores(
        self,
        strategy: str,
        like: str | None = None,
        other: Answers | None = None,
        max_words: int | None = None,
    ) -> dict[str | None, Score]:
        """Scores of every split and, for benchmarks of several, their mean.

        Args:
            strategy: Whose answers.
            like: Score only what this strategy answered too.
            other: Where ``like`` is to be found; None is here.
            max_words: Cut captions after this many white-space words.
        """
        found: dict[str | None, Score] = {}
        for split, lines in self.shared(strategy, like, other).items():
            key = (strategy, split, frozenset(lines), max_words)
            if key not in self._scored:
                self._scored[key] = _scored(self.benchmark, lines, max_words)
            found[split] = self._scored[key]
        if self.benchmark.splits and len(found) > 1:  # the mean of one is that one
            found[MEAN] = self.benchmark.mean({str(s): score for s, score in found.items()})
        return found

    def fixed(
        self, strategy: str, like: str | None = None, other: Answers | None = None
    ) -> dict[str | None, dict[str, dict[str, float]]]:
        """What answers get that do not change within a pair, of every split that has pairs.

        Args:
            strategy: Whose answers are copied.
            like: Only what this strategy answered too.
            other: Where ``like`` is to be found; None is here.
        """
        found: dict[str | None, dict[str, dict[str, float]]] = {}
        for split, lines in self.shared(strategy, like, other).items():
            ids, ordered = frozenset(lines), list(lines.values())
            always, copied = (split, ids), (strategy, split, ids)
            if always not in self._fixed:  # whoever answered
                self._fixed[always] = constant_answers(self.benchmark, ordered)
            if copied not in self._fixed:
                self._fixed[copied] = copied_answers(self.benchmark, ordered)
            if block := {**self._fixed[always], **self._fixed[copied]}:
                found[split] = block
        return found

    def as_greedy(self, strategy: str, splits: Sequence[str | None]) -> dict[str, int]:
        """Answers that the baseline gave too, and how many of them are its own, word for word.

        Args:
            strategy: Whose answers; of the baseline nothing is said.
            splits: Of which splits.
        """
        pairs = [
            (line["answer"], plain[name]["answer"])
            for split in splits
            for plain in [self.lines.get(BASELINE, {}).get(split, {})]
            for name, line in self.lines.get(strategy, {}).get(split, {}).items()
            if name in plain
        ]
        if strategy == BASELINE or not pairs:
            return {}
        return {"answered": len(pairs), "as_greedy": sum(own == plain for own, plain in pairs)}


def arrange(
    lines: Iterable[Mapping[str, Any]], run: Mapping[str, Any]
) -> dict[tuple[str, str], Answers]:
    """Sorts lines of ``samples.jsonl`` into `Answers` by task and source.

    Args:
        lines: The lines.
        run: The content of ``run.json``, which holds each benchmark's recipe under its name.
    """
    found: dict[tuple[str, str], Answers] = {}
    for line in lines:
        task, data = line["task"], line["data"]
        answers = found.setdefault((task, data), Answers(task, data, run.get(task, {}), {}))
        by_split = answers.lines.setdefault(line["strategy"], {})
        by_split.setdefault(line["split"], {})[line["id"]] = line
    return found


# Results ----------------------------------------------------------------------------------------


def build_results(
    done: Mapping[Key, Mapping[str, Any]],
    units: Sequence[EvalUnit],
    strategies: Sequence[str],
    run: Mapping[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """The content of ``results.json`` for what one call asked for.

    Args:
        done: Lines of the folder by key.
        units: What was asked.
        strategies: Canonical strategies.
        run: The content of ``run.json``.
        seed: Seed of the bootstrap.
    """
    keys = [(*u.key, name, s.id) for name in strategies for u in units for s in u.samples]
    groups = arrange((done[key] for key in keys if key in done), run)
    asked = {unit.key: len(unit.samples) for unit in units}
    for task, data, _ in asked:  # also what has no answer at all
        groups.setdefault((task, data), Answers(task, data, run.get(task, {}), {}))
    runs = [
        {**head, "engine": run["engine"], "model": run["model"], **entry}
        for group in groups.values()
        for strategy in strategies
        for head, entry in _entries(group, strategy, asked, seed)
    ]
    gaps = [
        gap
        for group in groups.values()
        for gap in differences(
            group, [s for s in strategies if s != BASELINE], BASELINE, seed, run=run
        )
        if BASELINE in strategies
    ]
    return {"schema": SCHEMA, "runs": runs, "differences": gaps}


def _entries(
    group: Answers, strategy: str, asked: Mapping[tuple[str, str, str | None], int], seed: int
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """(what, numbers) of every split of one task, source and strategy."""
    scores, fixed = group.scores(strategy), group.fixed(strategy)
    answered = group.lines.get(strategy, {})
    splits = {
        split: (split,) for task, data, split in asked if (task, data) == (group.task, group.data)
    }
    if group.benchmark.splits:
        splits[MEAN] = tuple(splits)
    metrics = dict[int, dict[str, dict[str, float]]]()  # the mean of one split is that split
    for split, parts in splits.items():
        lines = [line for part in parts for line in answered.get(part, {}).values()]
        wanted = sum(asked[group.task, group.data, part] for part in parts)
        seconds = sum(line["ms"] or 0 for line in lines) / 1000  # None where nobody measured
        tokens = sum(line["tokens"] or 0 for line in lines)
        score = scores.get(split) or (scores.get(parts[0]) if len(parts) == 1 else None)
        whole = (group.benchmark.complete(answered.get(part, {})) for part in parts)
        left_out = len(lines) - sum(map(len, whole))
        if score and id(score) not in metrics:
            metrics[id(score)] = _metrics(score, seed)
        yield (
            {"task": group.task, "data": group.data, "split": split, "strategy": strategy},
            {
                "n": score.n if score else 0,
                "failed": wanted - len(lines),
                # Answered, but not scored: what they are judged together with has no answer.
                **({"left_out": left_out} if left_out else {}),
                **group.as_greedy(strategy, parts),
                "cut": sum(line.get("finish") == "length" for line in lines),
                "unparsed": score.unparsed if score else 0,
                "unread": score.unread if score else 0,
                "metrics": metrics[id(score)] if score else {},
                **(hidden(group.benchmark, score) if score else {}),
                **({"fixed_answers": fixed[split]} if split in fixed else {}),
                "degenerate": list(score.degenerate) if score else [],
                "warnings": dict(Counter(w for line in lines for w in line.get("warnings", ()))),
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds, 3) if seconds else None,
            },
        )


def _metrics(score: Score, seed: int) -> dict[str, dict[str, float]]:
    return {
        name: {"value": i.value, "low": i.low, "high": i.high}
        for name, i in stats.intervals(score, seed=seed).items()
    }
