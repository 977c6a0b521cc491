"""The released answers of benchmarks/published/, compared in pairs as `compare` does it.

What is claimed stands in ``published/claims.toml``, where the files come from in
``published/sources.tsv``. Nothing here computes a number of its own.
"""

from __future__ import annotations

import gzip
import tempfile
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.evals.benchmarks.amber.files import WORDS
from halludecode.evals.results.build import Answers, arrange
from halludecode.evals.results.paired import differences
from halludecode.evals.results.verdict import verdict
from halludecode.evals.runner.import_answers import judged
from halludecode.evals.statistics.intervals import holm

HERE = Path(__file__).resolve().parent / "published"
MAIN = {"chair": "chair_s", "pope": "accuracy", "amber": "chair"}  # what a claim is about
SIDES = ("strategy", "baseline")


@dataclass
class Claim:
    """One claim and what the answers give.

    Args:
        task: The benchmark.
        told: Its entry of claims.toml.
        gap: The paired difference with its controls.
        p_holm: Of the main metric, over all claims of the page.
    """

    task: str
    told: Mapping[str, Any]
    gap: Mapping[str, Any] = field(repr=False)
    p_holm: float = 1.0

    @property
    def main(self) -> Mapping[str, Any]:
        """The difference that is claimed."""
        return self.gap["metrics"][MAIN[self.task]]

    @property
    def verdict(self) -> str:
        """What its controls leave of it."""
        return verdict(self.gap, MAIN[self.task])


def listed() -> dict[str, list[dict[str, Any]]]:
    """Entries of claims.toml by task; ``closed`` are those without files."""
    return tomllib.loads((HERE / "claims.toml").read_text(encoding="utf-8"))


def sources() -> list[dict[str, str]]:
    """Rows of sources.tsv."""
    head, *rows = (HERE / "sources.tsv").read_text(encoding="utf-8").splitlines()
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


def claims(only: Collection[tuple[str, str, str]] | None = None) -> list[Claim]:
    """All claims that can be computed, in the order of the file.

    Args:
        only: (task, name, against) of those wanted; None is all.
    """
    found = [
        Claim(task, told, compared(task, told))
        for task in MAIN
        for told in listed()[task]
        if only is None or (task, told["name"], told["against"]) in only
    ]
    corrected = holm([claim.main["p"] for claim in found])
    for claim, p in zip(found, corrected, strict=True):
        claim.p_holm = p
    return found


def compared(task: str, told: Mapping[str, Any], sides: Sequence[str] = SIDES) -> dict[str, Any]:
    """The difference of a claim's two sides with its controls.

    Args:
        task: The benchmark.
        told: The claim's entry.
        sides: Keys of the two sides: strategy, baseline or greedy.
    """
    group, run = answers(task, tuple(map(_files, (told[side] for side in sides))), told)
    gaps = differences(group, ["a"], "b", run=run)
    return next(gap for gap in gaps if gap["split"] == told.get("split"))


def _files(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def answers(
    task: str, sides: Sequence[tuple[str, ...]], told: Mapping[str, Any]
) -> tuple[Answers, Mapping[str, Any]]:
    """Both sides' answers as strategies ``a`` and ``b``, and the run they would make.

    Args:
        task: The benchmark.
        sides: Names of either side's files, seed by seed.
        told: The claim's entry; its ``split`` finds POPE's questions.
    """
    lines: dict[tuple[str, Any], Mapping[str, Any]] = {}
    run: Mapping[str, Any] = {}
    for name, files in zip("ab", sides, strict=True):
        for file in files:
            run, read = _lines(task, file, told.get("split"))
            for line in read:  # a picture that several seeds drew counts once
                lines.setdefault((name, line["id"]), {**line, "strategy": name})
    (group,) = arrange(lines.values(), run).values()
    return group, run


@cache
def _lines(task: str, file: str, split: str | None) -> tuple[Mapping[str, Any], list[Any]]:
    made = judged(_spec(task), {"a": HERE / f"{file}.jsonl.gz"}, annotations=_truth(task, split))
    data = {"data": "published"}  # not a file's own name: pairs are of several files
    return made.run, [{**line, **data} for line in made.lines]


def _spec(task: str) -> str:
    # The shipped tables, so that the page is the same wherever it is made.
    return {"chair": "chair(path=tables)", "amber": f"amber(lexicon={str(WORDS)!r})"}.get(
        task, task
    )


@cache
def _truth(task: str, split: str | None) -> Path | None:
    """The questions, unpacked where a scorer wants a folder; CHAIR's objects are shipped."""
    folder = HERE / "truth" / task
    if task == "amber":
        unpacked = Path(_scratch().name)
        for name in ("annotations", "query_generative"):
            text = gzip.decompress((folder / f"{name}.json.gz").read_bytes())
            (unpacked / f"{name}.json").write_bytes(text)
        return unpacked
    return folder / f"coco_pope_{split}.jsonl.gz" if task == "pope" else None


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def missing() -> str:
    """Why AMBER's descriptions cannot be read here; "" where they can."""
    from halludecode.evals.benchmarks.amber.description_words import nltk_nouns

    try:
        nltk_nouns()
    except HalluDecodeError as error:
        return str(error)
    return ""


# Against the first reading ------------------------------------------------------------------------


def numbers(claim: Claim) -> dict[str, Any]:
    """What claims.toml's ``first`` tells of a claim, as the page gives it, in points."""
    controls, metrics = claim.gap["controls"], claim.gap["metrics"]
    if claim.task == "chair":
        shares = controls["repetition"]["difference"]
        return {
            "s": 100 * metrics["chair_s"]["value"],
            "length": 100 * controls["length"]["matched"]["metrics"]["chair_s"]["value"],
            "objects": 100 * controls["objects"]["matched"]["metrics"]["chair_s"]["value"],
            "f1": 100 * controls["length"]["rates"]["metrics"]["f1"]["value"],
            "repeats": [100 * shares[side]["value"] for side in reversed(SIDES)],
        }
    if claim.task == "pope":
        d = controls["d_prime"]["metrics"]["d_prime"]["value"]
        named = {"accuracy": "accuracy", "f1": "f1", "yes": "yes_ratio"}
        return {k: 100 * metrics[name]["value"] for k, name in named.items()} | {"d": d}
    return {name: 100 * metrics[name]["value"] for name in ("chair", "cover", "hal")}


def departures(claim: Claim) -> list[str]:
    """Numbers that are not those of the first reading, within its rounding."""
    ours, off = numbers(claim), []
    for name, value in claim.told.get("first", {}).items():
        half = 0.005 if name == "d" else 0.05
        many = isinstance(value, list)
        for theirs, mine in zip(
            *((value, ours[name]) if many else ([value], [ours[name]])), strict=True
        ):
            if abs(theirs - mine) > half + 1e-9:
                off.append(f"{name} {mine:.2f}, then {theirs:g}")
    return off
