"""Paired differences of strategies to a baseline, each with the controls it must be read with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results import broken_text, controls
from halludecode.evals.results.detection import detection
from halludecode.evals.results.length_control import budget_curve, length_control
from halludecode.evals.results.object_control import object_control
from halludecode.evals.results.remarks import hidden
from halludecode.evals.results.yes_ratio import Pairs, yes_ratio
from halludecode.evals.statistics import intervals as stats

if TYPE_CHECKING:
    from halludecode.evals.results.build import Answers
    from halludecode.evals.statistics.score import Score

WORDS = {"yes", "no"}


@dataclass(frozen=True)
class _Pair:
    """Two strategies' answers to what both answered."""

    group: Answers
    strategy: str
    other: Answers
    baseline: str

    def scores(self, max_words: int | None = None) -> dict[str | None, tuple[Score, Score]]:
        ours = self.group.scores(self.strategy, self.baseline, self.other, max_words)
        theirs = self.other.scores(self.baseline, self.strategy, self.group, max_words)
        return {split: (ours[split], theirs[split]) for split in ours if split in theirs}

    def lines(self) -> dict[str | None, Pairs]:
        ours = self.group.shared(self.strategy, self.baseline, self.other)
        theirs = self.other.shared(self.baseline, self.strategy, self.group)
        return {
            split: [(line, theirs[split][i]) for i, line in lines.items()]
            for split, lines in ours.items()
            if split in theirs
        }

    def left_out(self) -> dict[str | None, dict[str, Any]]:
        """``left_out`` of every split where a side answered what the other did not."""
        ours = self.group.lines.get(self.strategy, {})
        theirs = self.other.lines.get(self.baseline, {})
        found: dict[str | None, dict[str, Any]] = {}
        for split in {**ours, **theirs}:
            a, b = set(ours.get(split, ())), set(theirs.get(split, ()))
            if a != b:
                found[split] = {"left_out": {"strategy": len(a - b), "baseline": len(b - a)}}
        return found

    def plain(self, seed: int) -> dict[str | None, dict[str, Any]]:
        """``n`` and ``metrics`` of every split."""
        return {
            split: {
                "n": a.n,
                "metrics": {n: d.to_dict() for n, d in stats.compare(a, b, seed=seed).items()},
                **self._hidden(a, b),
            }
            for split, (a, b) in self.scores().items()
        }

    def _hidden(self, a: Score, b: Score) -> dict[str, Any]:
        """``clusters``, and ``remarks`` on either side."""
        sides = {"strategy": a, "baseline": b}
        found = {side: hidden(self.group.benchmark, score) for side, score in sides.items()}
        remarks = {side: told["remarks"] for side, told in found.items() if "remarks" in told}
        return {"clusters": len(a.clusters), **({"remarks": remarks} if remarks else {})}

    def yes_ratios(
        self, plains: Mapping[str | None, Any], sampled: bool, seed: int
    ) -> dict[str | None, dict[str, Any]]:
        """``yes_ratio`` of every split and, where it has no number, ``d_prime``.

        {} unless all answers are a yes or a no.
        """
        lines = self.lines()
        labels = {line.get("label") for pairs in lines.values() for line, _ in pairs}
        if not labels or not labels <= WORDS:
            return {}
        blocks = yes_ratio(lines, sampled=sampled, seed=seed)
        lacking = any("reason" in block for block in blocks.values())
        sensed = detection(lines, plains, seed=seed) if lacking else {}
        return {
            split: {"yes_ratio": block, **({"d_prime": sensed[split]} if split in sensed else {})}
            for split, block in blocks.items()
        }

    def answers(self, splits: Iterable[str | None], seed: int) -> dict[str | None, dict[str, Any]]:
        """``unanswered`` of every split and, of texts, ``repetition``."""
        lines, blocks = self.lines(), {}
        everything = [pair for pairs in lines.values() for pair in pairs]
        for split in splits:
            pairs = lines.get(split, everything)  # the mean over splits counts all
            repeats = broken_text.repetition(self.group.benchmark, pairs, seed=seed)
            blocks[split] = {"unanswered": broken_text.unanswered_counts(pairs)}
            if repeats:
                blocks[split]["repetition"] = repeats
        return blocks

    def objects(
        self, split: str | None, plain: Mapping[str, Any], seed: int
    ) -> dict[str, dict[str, Any]]:
        """``objects``, the control at equally many, of texts."""
        a, b = self.scores()[split]
        benchmark = benchmark_named(self.group.task)
        block = object_control(benchmark, a, b, plain["metrics"], seed=seed)
        return {"objects": block} if block else {}

    def fixed(self) -> dict[str | None, dict[str, Any]]:
        """What answers get that do not change within a pair, of both sides, by split."""
        ours = self.group.fixed(self.strategy, self.baseline, self.other)
        theirs = self.other.fixed(self.baseline, self.strategy, self.group)
        found: dict[str | None, dict[str, Any]] = {}
        for side, blocks in (("strategy", ours), ("baseline", theirs)):
            for split, block in blocks.items():
                found.setdefault(split, {})[side] = {"fixed_answers": block}
        return found

    def lengths(
        self, split: str | None, plain: Mapping[str, Any], curve: bool, seed: int
    ) -> dict[str, Any]:
        """The length control of captions, with the curve over word budgets if asked for."""
        a, b = self.scores()[split]
        benchmark = benchmark_named(self.group.task)
        block = length_control(benchmark, a, b, plain["metrics"], seed=seed)
        if curve:
            texts = [(a.outcomes[i]["caption"], b.outcomes[i]["caption"]) for i in a.outcomes]
            block["budgets"] = budget_curve(lambda n: self.scores(n)[split], texts, seed=seed)
        return block


def differences(
    group: Answers,
    strategies: Sequence[str],
    baseline: str,
    seed: int = 0,
    other: Answers | None = None,
    run: Mapping[str, Any] | None = None,
    curve: bool = False,
) -> list[dict[str, Any]]:
    """Paired differences of strategies to a baseline on what both answered, with their controls.

    Args:
        group: Where the strategies' answers are.
        strategies: Canonical strategies.
        baseline: Canonical strategy compared with.
        seed: Seed of the bootstrap.
        other: Where the baseline's answers are; None is ``group``.
        run: The content of ``run.json`` behind ``group``: temperature and controls.
        curve: Also score captions cut at fixed numbers of words.

    Returns:
        One entry per strategy and split; its p-values also with Holm's correction over the
        strategies, and under ``controls`` what it must be read with: ``yes_ratio`` (yes/no tasks)
        and, without margins, ``d_prime``; ``length``, ``objects`` and ``repetition`` (texts);
        ``fixed`` (paired benchmarks; see `fixed_answers`); ``unanswered``; ``sampling``.
    """
    gaps = []
    for strategy in strategies:
        pair = _Pair(group, strategy, other or group, baseline)
        plains = pair.plain(seed)
        blocks = _controls(pair, plains, run or {}, curve, seed)
        left_out = pair.left_out()
        for split, plain in plains.items():
            head = {"task": group.task, "data": group.data, "split": split}
            sides = {"strategy": strategy, "baseline": baseline}
            more = left_out.get(split, {})
            gaps.append({**head, **sides, **plain, **more, "controls": blocks[split]})
    families: dict[Any, list[Any]] = {}
    for gap in gaps:
        # Controls are no claims: they neither widen the family nor are part of it.
        control = gap["controls"]["sampling"].get("against") == []
        families.setdefault((gap["split"], control), []).append(gap["metrics"])
    for rivals in families.values():
        correct(rivals)
    return gaps


def _controls(
    pair: _Pair,
    plains: Mapping[str | None, dict[str, Any]],
    run: Mapping[str, Any],
    curve: bool,
    seed: int,
) -> dict[str | None, dict[str, Any]]:
    """The controls of one pair by split."""
    task = pair.group.task
    sampling = run.get("sampling", {}).get(task, {})
    stated = sampling.get("temperature", 0.0) is not None
    temperature = sampling.get("temperature") or 0.0
    measured = run.get("strategies", {}).get(pair.strategy, {}).get("controls")
    ran = [name for name in (measured or {}).get("read_against", ()) if name in pair.group.lines]
    rivals = {c: _Pair(pair.group, pair.strategy, pair.group, c).plain(seed) for c in ran}
    benchmark = benchmark_named(task)
    ratios = pair.yes_ratios(plains, temperature > 0, seed)
    answers, fixed = pair.answers(plains, seed), pair.fixed()
    blocks: dict[str | None, dict[str, Any]] = {}
    for split, plain in plains.items():
        block: dict[str, Any] = {**ratios.get(split, {}), **answers[split]}
        if split in fixed:
            block["fixed"] = fixed[split]
        if benchmark.controlled_by("length"):
            block["length"] = pair.lengths(split, plain, curve, seed)
        if benchmark.object_metrics:
            block |= pair.objects(split, plain, seed)
        compared = {name: splits[split] for name, splits in rivals.items() if split in splits}
        known = controls.against(measured, temperature, compared)
        block["sampling"] = known if stated else {"note": controls.UNSTATED}
        blocks[split] = broken_text.withdrawn(block)
    return blocks


def correct(rivals: Sequence[dict[str, dict[str, float]]]) -> None:
    """Adds Holm's p-value over strategies that share a baseline, a split and a metric."""
    for name in rivals[0]:
        for metrics, p in zip(rivals, stats.holm([m[name]["p"] for m in rivals]), strict=True):
            metrics[name]["p_holm"] = p
