"""Paired differences between strategies of one run folder or of two.

Samples are paired by id, where both sides answered, and refused where question, picture or truth
differ. Prompts and models may differ: the difference is then about them, and names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.registry import BENCHMARKS, NotInstalled
from halludecode.evals.data.run_files import read_json
from halludecode.evals.results import remarks, summary, three_way
from halludecode.evals.results.build import BASELINE, Answers, arrange, labels
from halludecode.evals.results.paired import differences
from halludecode.evals.results.run_answers import run_answers
from halludecode.evals.statistics import intervals as stats

if TYPE_CHECKING:
    from rich.console import Group

    from halludecode.evals.results.build import Report

# Keys of run.json that make a run what it is.
RECIPE = ("model", "model_digest", "engine", "dtype", "seed", "prompts", "sampling")


@dataclass(frozen=True)
class Comparison:
    """Paired differences with 95 % intervals and p-values.

    Args:
        differences: One entry per task, source, split and strategy: first side minus baseline.
        labels: Canonical strategy to the words it was asked for with.
        apart: What else differs between two folders, such as the model.
        strangers: Tasks that are not installed here: differences to greedy stand as the run left
            them, others cannot be made.
        told: How answers made elsewhere were read.
        three: Whether there were three sides, see `three_way`.
    """

    differences: tuple[dict[str, Any], ...]
    labels: Mapping[str, str]
    apart: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    three: bool = False

    def summary(self) -> Group:
        """Which strategy, by how much, and is that sure; see `summary`."""
        from rich.console import Group
        from rich.text import Text

        given = (self.differences, self.labels)
        found = summary.lines(*given)
        told = [Text(f"{what}. {said}") for what, said in summary.answers(found)]
        told += map(Text, [*summary.fixed_answers(*given), *remarks.of_differences(*given)])
        beside = three_way.tables(*given) if self.three else []
        return Group(*self._also(), *beside, summary.summary_table(found), *told)

    def table(self) -> Group:
        """One table per task, source, split and strategy."""
        from rich.console import Group

        from halludecode.evals.results.terminal import comparison_tables

        beside = three_way.tables(self.differences, self.labels) if self.three else []
        return Group(*self._also(), *beside, comparison_tables(self.differences, self.labels))

    def _also(self) -> list[Any]:
        from rich.text import Text

        also = [Text(f"The runs also differ in {', '.join(self.apart)}.")] if self.apart else []
        for task in self.strangers:
            there = any(gap["task"] == task for gap in self.differences)
            became = "stands as in results.json" if there else "is left out"
            also.append(Text(f"Task {task!r} is not installed here and {became}."))
        return also

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``{"schema", "differences", "apart"}``, and ``strangers`` if there are."""
        found = {"schema": 1, "differences": list(self.differences), "apart": list(self.apart)}
        more = {"strangers": list(self.strangers), "read": list(self.told)}
        return found | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class SeedComparison:
    """Sampled decoding over several seeds.

    Args:
        spreads: One entry per task, source, split and strategy: ``metrics`` and, where there is a
            baseline, ``differences``, each metric with mean, sd over seeds and an interval.
        labels: Canonical strategy to the words it was asked for with.
        seeds: The seeds, in the order of the runs.
    """

    spreads: tuple[dict[str, Any], ...]
    labels: Mapping[str, str]
    seeds: tuple[int, ...]

    def table(self) -> Group:
        """One table per task, source, split and strategy."""
        from halludecode.evals.results.terminal import seed_tables

        return seed_tables(self.spreads, self.labels, self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``{"schema", "seeds", "spreads"}``."""
        return {"schema": 1, "seeds": list(self.seeds), "spreads": list(self.spreads)}


@dataclass(frozen=True)
class _Side:
    path: Path
    run: dict[str, Any]
    answers: dict[tuple[str, str], Answers]

    @classmethod
    def open(cls, path: Path) -> _Side:
        run = read_json(path / "run.json")
        answers = run_answers(path, run)
        if not answers:
            raise InvalidData(f"{path} has no answers yet; run eval first.")
        return cls(path, run, answers)

    @property
    def strangers(self) -> tuple[str, ...]:
        """Tasks that cannot be scored here."""
        found = (a.task for a in self.answers.values() if isinstance(a.benchmark, NotInstalled))
        return tuple(dict.fromkeys(found))

    def stored(self, strategies: Sequence[str]) -> list[dict[str, Any]]:
        """Differences to greedy that the run left of what cannot be scored here."""
        file = self.path / "results.json"
        gaps = read_json(file).get("differences", []) if file.exists() and self.strangers else []
        mine = [gap for gap in gaps if gap["task"] in self.strangers]
        return [gap for gap in mine if gap["strategy"] in strategies]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(name for a in self.answers.values() for name in a.lines))

    def find(self, words: str) -> str:
        """The canonical strategy that a user's words mean."""
        named = labels(self.run)
        exact = [s for s in self.strategies if words in (s, named.get(s))]
        short = [s for s in self.strategies if s.startswith(f"{words}(") and "+" not in s]
        fitting = exact or short
        if len(fitting) != 1:
            there = ", ".join(named.get(s, s) for s in self.strategies)
            what = f"several strategies {words!r}" if fitting else f"no strategy {words!r}"
            raise InvalidData(f"{self.path} has {what}; it has {there}.")
        return fitting[0]

    def only(self) -> str:
        """The strategy of a folder that holds a single one besides greedy."""
        others = [s for s in self.strategies if s != BASELINE] or self.strategies
        if len(others) != 1:
            named = labels(self.run)
            raise InvalidData(
                f"{self.path} holds {len(others)} strategies; say which: "
                f"{self.path}:STRATEGY, one of {', '.join(named.get(s, s) for s in others)}."
            )
        return others[0]


def compare_runs(specs: Sequence[str]) -> Comparison:
    """Compares what one to three specs name.

    Args:
        specs: ``RUN`` or ``RUN:STRATEGY``. ``RUN`` alone compares each of its strategies with
            greedy; ``RUN:A`` alone compares A with greedy; two specs compare the first with the
            second; three are a strategy, its sampled baseline and plain greedy, see `three_way`.

    Returns:
        Differences first minus second (or minus greedy).

    Raises:
        InvalidData: A folder or strategy is not there, nothing is shared, or the data differ.
    """
    if not 1 <= len(specs) <= 3:
        raise InvalidData(f"compare takes one to three runs, not {len(specs)}.")
    if len(specs) == 3:
        return _three([compare_runs([specs[i], specs[j]]) for i, j in three_way.PAIRS])
    pairs = [_split(spec) for spec in specs]
    sides = [_Side.open(path) for path, _ in pairs]
    if len(sides) == 1:
        return _against_greedy(sides[0], pairs[0][1])
    first, second = sides
    names = [s.find(name) if name else s.only() for s, (_, name) in zip(sides, pairs, strict=True)]
    gaps, strangers = [], first.strangers
    for key, group in first.answers.items():
        if key in second.answers and group.task not in strangers:
            other = second.answers[key]
            _same_data(group, names[0], other, names[1], first.path, second.path)
            gaps += differences(
                group,
                [names[0]],
                names[1],
                _seed(first.run),
                other=other,
                run=first.run,
                curve=True,
            )
    apart = _apart(first.run, second.run)
    return _comparison(gaps, {**labels(second.run), **labels(first.run)}, apart, strangers)


def compare_answers(
    run: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    told: tuple[str, ...] = (),
) -> Comparison:
    """Compares two or three systems' answers that lie in no run folder.

    Args:
        run: The content of a ``run.json``.
        lines: Lines of a ``samples.jsonl``.
        names: Of the systems: the second is subtracted from the first; of three see `three_way`.
        told: How they were read.
    """
    groups = arrange(lines, run).values()

    def pair(first: str, second: str) -> Comparison:
        given = (_seed(run), None, run, True)
        gaps = [gap for group in groups for gap in differences(group, [first], second, *given)]
        return _comparison(gaps, labels(run), (), ())

    if len(names) == 3:
        made = _three([pair(names[i], names[j]) for i, j in three_way.PAIRS])
    else:
        made = pair(*names)
    return replace(made, told=told)


def _three(parts: Sequence[Comparison]) -> Comparison:
    """The comparisons of three sides as one."""
    gaps = three_way.joined([part.differences for part in parts])
    named = {name: words for part in reversed(parts) for name, words in part.labels.items()}
    apart, strangers = (
        tuple(dict.fromkeys(name for part in parts for name in found(part)))
        for found in (lambda part: part.apart, lambda part: part.strangers)
    )
    return Comparison(tuple(gaps), named, apart, strangers, three=True)


def compare_seeds(specs: Sequence[str]) -> SeedComparison:
    """Means, standard deviations and two-level intervals over runs that differ in their seed.

    Args:
        specs: ``RUN`` or ``RUN:STRATEGY`` of at least three runs of one recipe. ``RUN`` takes every
            strategy that all runs hold; with greedy among them also the differences to it.

    Raises:
        InvalidData: Fewer than three runs, seeds that repeat, another recipe, or other samples.
    """
    pairs = [_split(spec) for spec in specs]
    sides = [_Side.open(path) for path, _ in pairs]
    seeds = _distinct_seeds(sides)
    named = {side.find(name) for side, (_, name) in zip(sides, pairs, strict=True) if name}
    common = [s for s in sides[0].strategies if all(s in side.strategies for side in sides)]
    strategies = [s for s in common if not named or s in named]
    spreads = [
        entry
        for key in sides[0].answers
        if key[0] not in sides[0].strangers and all(key in side.answers for side in sides)
        for strategy in strategies
        for entry in _spreads([side.answers[key] for side in sides], strategy, seeds[0])
    ]
    if not spreads:
        raise InvalidData("The runs have no strategy and task in common.")
    return SeedComparison(tuple(spreads), labels(sides[0].run), seeds)


def _distinct_seeds(sides: Sequence[_Side]) -> tuple[int, ...]:
    first = sides[0]
    for side in sides[1:]:
        apart = [name for name in _apart(first.run, side.run) if name != "seed"]
        if apart:
            raise InvalidData(
                f"{first.path} and {side.path} differ in {', '.join(apart)}; over seeds, only the "
                "seed may."
            )
    seeds = tuple(_seed(side.run) for side in sides)
    if len(set(seeds)) < len(seeds) or len(seeds) < 3:
        raise InvalidData(
            f"Seeds {', '.join(map(str, seeds))}: give at least 3 runs with different seeds "
            "(eval --temperature T --seed N)."
        )
    return seeds


def _spreads(groups: Sequence[Answers], strategy: str, seed: int) -> list[dict[str, Any]]:
    """Entries of one task, source and strategy over the seeds, by split."""
    runs = [group.scores(strategy) for group in groups]
    plain = [group.scores(BASELINE) for group in groups] if strategy != BASELINE else []
    entries = []
    for split in runs[0]:
        scores = [run[split] for run in runs if split in run]
        rivals = [run[split] for run in plain if split in run]
        entry: dict[str, Any] = {
            "task": groups[0].task,
            "data": groups[0].data,
            "split": split,
            "strategy": strategy,
            "n": scores[0].n,
            "metrics": _spread(stats.over_seeds(scores, seed=seed)),
        }
        if rivals:
            gaps = stats.over_seeds(scores, rivals, seed=seed)
            entry |= {"baseline": BASELINE, "differences": _spread(gaps)}
        entries.append(entry)
    return entries


def _spread(spreads: Mapping[str, stats.SeedSpread]) -> dict[str, dict[str, float]]:
    return {name: spread._asdict() for name, spread in spreads.items()}


def compare(a: Report | str | Path, b: Report | str | Path) -> Comparison:
    """Compares two reports, each of a single strategy (greedy beside it does not count).

    Args:
        a: A report, its run folder, or ``RUN:STRATEGY``.
        b: What it is compared with.
    """
    return compare_runs([str(getattr(side, "path", side)) for side in (a, b)])


def _against_greedy(side: _Side, name: str) -> Comparison:
    if BASELINE not in side.strategies:
        raise InvalidData(f"{side.path} has no greedy answers to compare with; name two runs.")
    strategies = [side.find(name)] if name else [s for s in side.strategies if s != BASELINE]
    if not strategies:
        raise InvalidData(f"{side.path} holds greedy alone; name two runs to compare.")
    gaps = side.stored(strategies)
    for group in side.answers.values():
        if group.task in side.strangers:
            continue
        answered = [s for s in strategies if s in group.lines]
        gaps += differences(group, answered, BASELINE, _seed(side.run), run=side.run, curve=True)
    return _comparison(gaps, labels(side.run), (), side.strangers)


def _comparison(
    gaps: list[dict[str, Any]],
    named: Mapping[str, str],
    apart: tuple[str, ...],
    strangers: tuple[str, ...],
) -> Comparison:
    if not gaps and strangers:
        raise InvalidData(
            f"Task {strangers[0]!r} is not installed here, and its answers cannot be scored "
            f"without it; known are {', '.join(BENCHMARKS.names())}."
        )
    if not gaps:
        raise InvalidData("The two sides have no answered sample in common.")
    return Comparison(tuple(gaps), named, apart, strangers)


def _split(spec: str) -> tuple[Path, str]:
    """``RUN:STRATEGY`` into folder and strategy; a folder may have a colon in its name."""
    text = str(spec)
    if Path(text).is_dir():
        return Path(text), ""
    at = text.find(":")
    while at >= 0:
        if Path(text[:at]).is_dir():
            return Path(text[:at]), text[at + 1 :]
        at = text.find(":", at + 1)
    raise InvalidData(f"{text}: no such run folder.")


def _seed(run: Mapping[str, Any]) -> int:
    return int(run.get("seed") or 0)


def _same_data(
    a: Answers, strategy_a: str, b: Answers, strategy_b: str, path_a: Path, path_b: Path
) -> None:
    """Refuses samples of one id with different questions, pictures or truths."""
    for split, lines in a.lines.get(strategy_a, {}).items():
        others = b.lines.get(strategy_b, {}).get(split, {})
        for i, line in lines.items():
            if i in others and line["data_hash"] != others[i]["data_hash"]:
                raise InvalidData(
                    f"{path_a} and {path_b} were run on different data: {a.task} on {a.data}, "
                    f"sample {i} differs in question, picture or truth."
                )


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, ...]:
    names = (*RECIPE, *BENCHMARKS.names())  # what a benchmark's numbers hang on is under its name
    return tuple(name for name in names if first.get(name) != second.get(name))
