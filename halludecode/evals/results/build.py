"""From lines of a run folder to numbers: metrics with intervals, pairs with differences.

Scores are computed from the lines alone, so that a run can be compared and reported where its data
are not. Lines are taken in the order of their ids: an interrupted run and an unbroken one give the
same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.evals.benchmarks import folder_tasks as benchmarks
from halludecode.evals.benchmarks import yes_no as yesno
from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.results.paired import differences
from halludecode.evals.runner.run_folder import SCHEMA, Key
from halludecode.evals.statistics import intervals as stats

if TYPE_CHECKING:
    from rich.console import Group

    from halludecode.evals.data.samples import EvalUnit, Sample
    from halludecode.evals.statistics.score import Score

BASELINE = "greedy"
Lines = Mapping[Any, Mapping[str, Any]]  # by sample id


@dataclass(frozen=True)
class Report:
    """What a run came to.

    Args:
        results: The content of ``results.json``.
        path: The run folder.
        run: The content of ``run.json``.
        failed: Samples that this call asked about and that have no answer, over all strategies.
    """

    results: dict[str, Any] = field(repr=False)
    path: Path
    run: dict[str, Any] = field(repr=False)
    failed: int = 0

    def table(self) -> Group:
        """One small table per task and data source; see `terminal.results_tables`."""
        from halludecode.evals.results.terminal import results_tables

        return results_tables(self.results, labels(self.run))

    def to_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return self.results


def labels(run: Mapping[str, Any]) -> dict[str, str]:
    """Canonical strategy to the words it was asked for with."""
    return {name: info.get("spec", name) for name, info in run.get("strategies", {}).items()}


# One answer -------------------------------------------------------------------------------------


@cache
def _reader(family: str, path: str) -> words.Reader:
    return words.reader(family, path)


def judge(task: str, sample: Sample, answer: str, families: Mapping[str, str]) -> dict[str, Any]:
    """What one answer says and how right it is: the ``parsed`` and ``score`` of its line.

    Returns:
        For yes/no tasks ``parsed`` is "yes", "no" or "other" under the official rule and ``score``
        1 or 0. For captions ``parsed`` lists the objects mentioned, those not in the picture, the
        caption's words as the scorer counts them, and which of these name what is not there;
        ``score`` is the share of mentions that are (1 when nothing is mentioned).
    """
    if task == "chair":
        return _judge_caption(sample, answer, families)
    rule = yesno.parse_answer if task == "pope" else yesno.parse_mme_answer
    parsed = rule(answer)
    return {"parsed": parsed, "score": int(parsed == sample.label)}


def _judge_caption(sample: Sample, answer: str, families: Mapping[str, str]) -> dict[str, Any]:
    words_of = _reader(families.get("family", "wordnet"), families.get("path", "auto"))
    reading = words_of.read(chair.trim(answer, incomplete=families.get("incomplete", "keep")))
    wrong = [m for m in reading.mentions if m.object not in (sample.objects or ())]
    said = len(reading.mentions)
    parsed = {
        "generated": reading.objects,
        "hallucinated": [m.object for m in wrong],
        "words": list(reading.words),
        "hallucinated_words": [[reading.words[m.index], m.object] for m in wrong],
    }
    return {"parsed": parsed, "score": 1 - len(wrong) / said if said else 1.0}


# Many answers -----------------------------------------------------------------------------------


def _order(identifier: int | str) -> tuple[Any, ...]:
    """Ids in the order people count in: 2 before 10, also inside names."""
    parts = re.split(r"(\d+)", str(identifier))
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def score_lines(
    task: str, lines: Lines, families: Mapping[str, str], max_words: int | None = None
) -> Score:
    """Scores the answers to one task on one source and split.

    Args:
        task: A name of `task.TASKS`.
        lines: Lines of ``samples.jsonl`` by id; at least one.
        families: The run's ``chair`` record: word families, word path, and what becomes of an
            unfinished sentence.
        max_words: Cut captions after this many white-space words.
    """
    ordered = [lines[i] for i in sorted(lines, key=_order)]
    answers = {line["id"]: line["answer"] for line in ordered}
    if task == "chair":
        # An unfinished sentence goes before the cut: a cut caption seldom ends with a period.
        drop = families.get("incomplete", "keep")
        captions = [
            chair.Caption(i, chair.trim(said, incomplete=drop)) for i, said in answers.items()
        ]
        truth = {line["id"]: frozenset(line["objects"]) for line in ordered}
        recipe = {**families, "incomplete": "keep"}
        scored = chair.score(captions, truth, **recipe, max_words=max_words)
        return replace(scored, notes={**scored.notes, "incomplete": drop})
    if task in benchmarks.SCORES:
        return benchmarks.SCORES[task](ordered)
    if task == "pope":
        return pope.score(
            [pope.PopeQuestion(i["id"], i["image"], i["prompt"], i["label"]) for i in ordered],
            answers,
        )
    asked = []
    for line in ordered:
        asked.append(mme.MmeQuestion.from_id(line["id"], line["prompt"], line["label"]))
    return mme.score(asked, answers)


def scorable(task: str, lines: Lines) -> Lines:
    """The lines a scorer can use: only whole pairs (MME) and sets, which a failed answer breaks."""
    if task == "hallusionbench":
        return benchmarks.whole_sets(lines)
    if task != "mme":
        return lines

    def partner(name: str) -> str:
        stem, _, k = name.rpartition("#")
        return f"{stem}#{int(k) + 1 if int(k) % 2 else int(k) - 1}"  # 1 with 2, 3 with 4

    return {i: line for i, line in lines.items() if partner(str(i)) in lines}


@dataclass
class Answers:
    """Answers to one task on one source: lines by strategy, split and id."""

    task: str
    data: str
    families: Mapping[str, str]
    lines: dict[str, dict[str | None, dict[Any, Mapping[str, Any]]]]
    # Reading captions takes seconds, and a baseline is needed beside every strategy.
    _scored: dict[Any, Score] = field(default_factory=dict, repr=False)

    def scored_text(self, line: Mapping[str, Any]) -> str:
        """The part of an answer that is scored: captions may lose an unfinished sentence."""
        if self.task != "chair":
            return line["answer"]
        return chair.trim(line["answer"], incomplete=self.families.get("incomplete", "keep"))

    def shared(
        self, strategy: str, like: str | None = None, other: Answers | None = None
    ) -> dict[str | None, Lines]:
        """Lines of every split that can be scored, in the order of their ids.

        Args:
            strategy: Whose answers.
            like: Only what this strategy answered too.
            other: Where ``like`` is to be found; None is here.
        """
        theirs = None if like is None else (other or self).lines.get(like, {})
        found: dict[str | None, Lines] = {}
        for split, lines in self.lines.get(strategy, {}).items():
            if theirs is not None:
                lines = {i: line for i, line in lines.items() if i in theirs.get(split, {})}
            if usable := scorable(self.task, lines):
                found[split] = {i: usable[i] for i in sorted(usable, key=_order)}
        return found

    def scores(
        self,
        strategy: str,
        like: str | None = None,
        other: Answers | None = None,
        max_words: int | None = None,
    ) -> dict[str | None, Score]:
        """Scores of every split, and their mean for POPE.

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
                self._scored[key] = score_lines(self.task, lines, self.families, max_words)
            found[split] = self._scored[key]
        if self.task == "pope" and found:
            found["mean"] = pope.mean({str(split): score for split, score in found.items()})
        return found


def arrange(
    lines: Iterable[Mapping[str, Any]], families: Mapping[str, str]
) -> dict[tuple[str, str], Answers]:
    """Sorts lines of ``samples.jsonl`` into `Answers` by task and source."""
    found: dict[tuple[str, str], Answers] = {}
    for line in lines:
        task, data = line["task"], line["data"]
        answers = found.setdefault((task, data), Answers(task, data, families, {}))
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
    groups = arrange((done[key] for key in keys if key in done), run["chair"])
    asked = {unit.key: len(unit.samples) for unit in units}
    for task, data, _ in asked:  # also what has no answer at all
        groups.setdefault((task, data), Answers(task, data, run["chair"], {}))
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
    scores = group.scores(strategy)
    answered = group.lines.get(strategy, {})
    splits = {
        split: (split,) for task, data, split in asked if (task, data) == (group.task, group.data)
    }
    if group.task == "pope":
        splits["mean"] = tuple(splits)
    for split, parts in splits.items():
        lines = [line for part in parts for line in answered.get(part, {}).values()]
        wanted = sum(asked[group.task, group.data, part] for part in parts)
        seconds = sum(line["ms"] for line in lines) / 1000
        tokens = sum(line["tokens"] for line in lines)
        score = scores.get(split)
        yield (
            {"task": group.task, "data": group.data, "split": split, "strategy": strategy},
            {
                "n": score.n if score else 0,
                "failed": wanted - len(lines),
                "cut": sum(line.get("finish") == "length" for line in lines),
                "unparsed": score.unparsed if score else 0,
                "metrics": _metrics(score, seed) if score else {},
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
