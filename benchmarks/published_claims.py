"""What published claims are worth: released answers of real models under every control.

    .venv/bin/python benchmarks/published_claims.py [--output FILE]

Reads benchmarks/published/ alone and writes benchmarks/published_claims.md; no model, no network.
AMBER's descriptions are read with NLTK, whose data must be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import published_answers as published
from published_answers import Claim

from halludecode.cli.output import without_collector
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.results import broken_text, detection, object_control
from halludecode.evals.results.length_control import VERDICTS as LENGTH
from halludecode.evals.results.sections import gap_text
from halludecode.evals.results.verdict import NONE, STANDS, WORSE
from halludecode.evals.statistics.intervals import excludes_zero

LEVEL = 0.05
AGAINST = {"greedy": "greedy", "beam": "beam 5", "sampling": "sampling", "trained": "untrained"}
SHORT = {
    STANDS: "stands",
    NONE: "not significant",
    WORSE: "worse",
    LENGTH["only"]: "only length",
    LENGTH["reversed"]: "turns round at equal length",
    object_control.VERDICTS["only"]: "only fewer objects",
    object_control.VERDICTS["reversed"]: "turns round at equal objects",
    detection.VERDICTS["only"]: "only a yes-ratio shift",
    detection.VERDICTS["reversed"]: "d' turns round",
    broken_text.UNTOLD["repetition"]: "text repeats itself",
    broken_text.UNTOLD["unanswered"]: "leaves more unanswered",
}
RANK = ("stands", "only", "turns", "text", "leaves", "not", "worse")


# One claim ----------------------------------------------------------------------------------------


def word(claim: Claim) -> str:
    """The verdict in a few words; Holm's correction over the page has the last one."""
    parts = [SHORT[part] for part in claim.verdict.split("; ")]
    said = "; ".join(parts)
    if claim.p_holm >= LEVEL:
        return f"not significant{'' if claim.verdict == NONE else f' (uncorrected: {said})'}"
    return said


def rank(claim: Claim) -> tuple[int, float]:
    """What stands first, then what its controls take away, what is not significant, and harm."""
    said = word(claim)
    return next(i for i, start in enumerate(RANK) if said.startswith(start)), claim.main[
        "value"
    ] * (-1 if claim.task == "pope" else 1)


def title(claim: Claim) -> str:
    """Name, what it is held against, and its print."""
    told = claim.told
    against = AGAINST.get(told["against"])
    parts = [told["name"] + (f", against {against}" if against else "")]
    parts += [f"print {told['print']}"] if "print" in told else []
    parts += [told["note"]] if "note" in told else []
    return "; ".join(parts)


def sides(gap: Mapping[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """``44.8 → 44.6``."""
    return " → ".join(
        f"{gap[side]['value'] * scale:.{digits}f}" for side in ("baseline", "strategy")
    )


def p_text(p: float) -> str:
    """A p-value in two digits."""
    return "1" if p >= 0.995 else f"{p:.2g}"


def starred(gap: Mapping[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """A difference without its interval."""
    return f"{gap['value'] * scale:+.{digits}f}{'*' if excludes_zero(gap) else ''}"


# Tables -------------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Claim], str]]


def table(columns: Sequence[Column], claims: Iterable[Claim]) -> str:
    """Markdown of claims, what stands first."""
    rows = [[cell(claim) for _, cell in columns] for claim in sorted(claims, key=rank)]
    return grid([name for name, _ in columns], rows)


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _control(kind: str, name: str) -> Callable[[Claim], Mapping[str, Any]]:
    return lambda claim: claim.gap["controls"][kind]["matched"]["metrics"][name]


def _objects(claim: Claim) -> Mapping[str, Any]:
    return claim.gap["controls"]["objects"]["named"]


def _repeats(claim: Claim) -> Mapping[str, Any]:
    return claim.gap["controls"]["repetition"]["difference"]


def _d(claim: Claim) -> Mapping[str, Any]:
    return claim.gap["controls"]["d_prime"]["metrics"]["d_prime"]


def _metric(name: str) -> Callable[[Claim], Mapping[str, Any]]:
    return lambda claim: claim.gap["metrics"][name]


def _whole(name: str) -> list[Column]:
    metric = _metric(name)
    return [
        (f"{name}", lambda c: sides(metric(c))),
        ("difference [95 %]", lambda c: gap_text(metric(c), 100.0)),
        ("p (Holm)", lambda c: p_text(c.p_holm)),
    ]


CAPTIONS: list[Column] = [
    ("claim", title),
    *_whole("chair_s"),
    ("equal length", lambda c: gap_text(_control("length", "chair_s")(c), 100.0)),
    ("equal objects", lambda c: gap_text(_control("objects", "chair_s")(c), 100.0)),
    ("4-grams repeated", lambda c: sides(_repeats(c))),
    ("verdict", word),
]
MORE: list[Column] = [
    ("claim", lambda c: c.told["name"] + f", {AGAINST.get(c.told['against'], 'other')}"),
    ("CHAIR_i", lambda c: f"{sides(_metric('chair_i')(c))}, {starred(_metric('chair_i')(c))}"),
    ("recall", lambda c: f"{sides(_metric('recall')(c))}, {starred(_metric('recall')(c))}"),
    ("F1 of objects", lambda c: starred(c.gap["controls"]["length"]["rates"]["metrics"]["f1"])),
    ("objects a caption", lambda c: f"{sides(_objects(c), 1, 2)}, {starred(_objects(c), 1, 2)}"),
    ("words", lambda c: sides(_metric("length")(c), 1, 0)),
    ("n", lambda c: str(c.gap["n"])),
    ("first reading", lambda c: reproduced(c)),
]
QUESTIONS: list[Column] = [
    ("claim", title),
    *_whole("accuracy"),
    ("d'", lambda c: gap_text(_d(c), 1.0, 2)),
    ("F1", lambda c: starred(_metric("f1")(c))),
    ("yes %", lambda c: f"{sides(_metric('yes_ratio')(c))}"),
    ("n", lambda c: str(c.gap["n"])),
    ("first reading", lambda c: reproduced(c)),
    ("verdict", word),
]
DESCRIPTIONS: list[Column] = [
    ("claim", title),
    *_whole("chair"),
    ("CHAIR at equal objects", lambda c: gap_text(_control("objects", "chair")(c), 100.0)),
    ("Hal", lambda c: gap_text(_metric("hal")(c), 100.0)),
    ("cover", lambda c: starred(_metric("cover")(c))),
    ("4-grams repeated", lambda c: sides(_repeats(c))),
    ("first reading", lambda c: reproduced(c)),
    ("verdict", word),
]


def reproduced(claim: Claim) -> str:
    """Whether a first reading gave the same numbers, and why not."""
    if "first" not in claim.told:
        return "not made"
    off = published.departures(claim)
    if not off:
        return "the same"
    return f"{', '.join(off)}: {claim.told.get('differs', 'UNEXPLAINED')}"


def unexplained(claims: Iterable[Claim]) -> list[str]:
    """Rows that neither give the first reading's numbers nor say why not."""
    return [title(claim) for claim in claims if "UNEXPLAINED" in reproduced(claim)]


def three_way(claims: Iterable[Claim]) -> str:
    """Strategies with a sampled baseline of their own, beside plain greedy."""
    rows = []
    for claim in claims:
        if "greedy" not in claim.told:
            continue
        name = published.MAIN[claim.task]
        greedy = published.compared(claim.task, claim.told, ("strategy", "greedy"))["metrics"][name]
        found = (claim.main["strategy"], claim.main["baseline"], greedy["baseline"])
        values = [f"{100 * side['value']:.1f}" for side in found]
        gaps = [gap_text(claim.main, 100.0), gap_text(greedy, 100.0)]
        rows.append([claim.told["name"], name, *values, *gaps])
    head = ["strategy", "metric", "strategy", "its sampled baseline", "plain greedy"]
    return grid([*head, "minus its baseline", "minus greedy"], rows)


# Numbers that the repositories print -------------------------------------------------------------


def prints(claims: Sequence[Claim]) -> str:
    """Numbers that the repositories print of their own answers, made again."""
    expected = json.loads((published.HERE / "HALC" / "expected_pattern.json").read_text())
    truth = chair.load_truth(published.HERE / "truth" / "chair" / "pattern_halc.tsv.gz")
    same = {"chair_s": 0, "chair_i": 0}
    worst = 0.0
    for name, told in expected.items():
        captions = chair.load_captions(published.HERE / "HALC" / "chair" / name)
        score = chair.score(captions, truth, family="pattern")
        off = {key: abs(score.metrics[key] - told[key]) for key in same}
        worst = max(worst, *off.values())
        for key, gap in off.items():
            same[key] += gap < 1e-9
    yeutong = _found(claims, "VCD, LLaVA-1.5-7B, popular (yeutong)", "sampling")
    shield = [c for c in claims if c.told["name"].startswith("SHIELD") and c.task == "pope"]
    own = [c for c in shield if c.told["against"] == "sampling"]
    accuracy, f1 = (
        100 * sum(c.gap["metrics"][name]["strategy"]["value"] for c in own) / len(own)
        for name in ("accuracy", "f1")
    )
    captions = _found(claims, "SHIELD, LLaVA-1.5", "greedy").gap["metrics"]
    s, i = (100 * captions[name]["strategy"]["value"] for name in ("chair_s", "chair_i"))
    rows = [
        [
            "HALC, CHAIR of eleven files (family pattern)",
            "expected_pattern.json",
            f"CHAIR_s {same['chair_s']} of {len(expected)} equal, CHAIR_i {same['chair_i']}; "
            f"the others within {worst:.4f}",
        ],
        ["yeutong, POPE popular", "82.2 → 83.33 (results/log.txt)", sides(yeutong.main, digits=2)],
        ["SHIELD, POPE mean accuracy / F1", "87.0 / 87.4", f"{accuracy:.1f} / {f1:.1f}"],
        ["SHIELD, CHAIR_s / CHAIR_i", "36.6 / 10.3", f"{s:.1f} / {i:.1f}"],
    ]
    return grid(["what", "printed there", "from the answers"], rows)


def _found(claims: Iterable[Claim], name: str, against: str) -> Claim:
    return next(c for c in claims if (c.told["name"], c.told["against"]) == (name, against))


# The page -----------------------------------------------------------------------------------------


def conclusion(claims: Sequence[Claim]) -> list[str]:
    """What the tables say, counted from them."""
    captions = [c for c in claims if c.task == "chair"]
    plain = [c for c in captions if c.told["against"] in ("greedy", "beam")]
    lower = [c for c in plain if c.main["value"] < 0 and c.p_holm < LEVEL]
    kept = [c for c in lower if c.verdict == STANDS]
    length = [c for c in lower if not excludes_zero(_control("length", "chair_s")(c))]
    objects = [c for c in lower if _control("objects", "chair_s")(c)["high"] >= 0]
    again = _found(claims, "No strategy: greedy made again, LLaVA-1.5", "other")
    repeats = [c for c in captions if word(c) == "text repeats itself"]
    greedy = [c for c in claims if c.task == "pope" and c.told["against"] == "greedy"]
    gained = [c for c in greedy if c.main["value"] > 0 and c.p_holm < LEVEL]
    more = [c for c in gained if c.verdict == STANDS]
    names = "; ".join(_against_beam(c, captions) for c in kept) or "none"
    popular = [c for c in claims if c.gap["split"] == "popular" and c.gap["n"] == 3000]
    popular = [c for c in popular if "1.5-7B" in c.told["name"] and c.told["against"] == "sampling"]
    sampled = sorted({100 * c.main["baseline"]["value"] for c in popular})
    plainly = _found(claims, "Greedy, no strategy, LLaVA-1.5-7B, popular (cd_rethink)", "sampling")
    return [
        f"Of {len(plain)} comparisons of a decoding strategy with greedy or beam search on "
        f"captions, {len(lower)} lower CHAIR_s after Holm's correction over this page. "
        f"{len(length)} of them show nothing at equal length, {len(objects)} nothing (or the "
        f"contrary) at equally many objects; {len(kept)} stand under every control: {names}.",
        f"In {len(repeats)} of {len(captions)} caption rows the text has come apart: "
        + "; ".join(f"{c.told['name']} ({sides(_repeats(c))} % repeated)" for c in repeats)
        + '. An equal-length control alone says "holds" there.',
        f"Greedy made again on another machine moves CHAIR_s by {starred(again.main)} points (p "
        f"{p_text(again.main['p'])}, uncorrected). Rows whose baseline is another repository's "
        "hold that much of the machine.",
        f"On POPE, {len(gained)} of {len(greedy)} comparisons with plain greedy are gains after "
        f"Holm's correction, {len(more)} of them by more than a yes-ratio shift (d', parametric). "
        "Gains over sampling at T=1 have to be read against what greedy gains over the same "
        f"sampling ({starred(plainly.main)} points). Sampled baselines of one model on the same "
        f"3,000 popular questions: {', '.join(f'{x:.1f}' for x in sampled)}; "
        f"greedy {100 * plainly.main['strategy']['value']:.1f}.",
        "What holds least is the baseline that stands beside a claim, not the strategy's own "
        "number: those were given back wherever the answers were there (Prints).",
    ]


def _against_beam(claim: Claim, claims: Iterable[Claim]) -> str:
    """The name of a claim, and what is left of its strategy against beam search."""
    beams = (c for c in claims if c.told["against"] == "beam")
    twin = next((c for c in beams if c.told["strategy"] == claim.told["strategy"]), None)
    more = f", against beam 5 {word(twin)}" if twin and twin is not claim else ""
    return f"{claim.told['name']} ({AGAINST[claim.told['against']]}{more})"


def page(claims: Sequence[Claim]) -> str:
    """The whole page."""
    by_task = {task: [c for c in claims if c.task == task] for task in published.MAIN}
    closed = published.listed()["closed"]
    rows = published.sources()
    repositories: dict[str, list[str]] = {}
    for row in rows:
        repositories.setdefault(f"{row['repository']} ({row['licence']})", []).append(row["file"])
    used = {f for c in claims for side in ("strategy", "baseline") for f in _stems(c.told[side])}
    left = [r for r in rows if r["file"].removesuffix(".jsonl.gz") not in used]
    left = [r for r in left if not r["file"].startswith("truth/")]
    spare = grid(
        ["file", "model", "answers of"], [[r["file"], r["model"], r["answers of"]] for r in left]
    )
    same = sum("first" in c.told and not published.departures(c) for c in claims)
    first = sum("first" in c.told for c in claims)
    parts = [
        "# What published claims are worth",
        "Made by `python benchmarks/published_claims.py` from the released answers in "
        "`benchmarks/published/`; do not edit.",
        "\n".join(f"{i}. {said}" for i, said in enumerate(conclusion(claims), start=1)),
        "## How to read it",
        "Differences are strategy minus baseline in points, paired by picture, with 95 % intervals "
        "from 10,000 bootstrap resamples of the pictures; * leaves out zero. p is McNemar's (of "
        "AMBER's CHAIR the bootstrap's), corrected by Holm over all "
        f"{len(claims)} rows of this page. *Equal length*: both captions of a picture cut to the "
        "shorter. *Equal objects*: both cut behind the same number of different objects, the "
        "smaller of the two. *4-grams repeated*: runs of four words that the caption had said "
        f"before, in %; above {broken_text.REPEATS:.0%} and more than on the other side, no "
        "verdict says that anything holds. *d'* is parametric (equal-variance normal model, "
        "log-linear correction), as nobody released margins. An interval that holds zero proves no "
        "absence. "
        "`halludecode compare` gives every number of a row for any two files. *First reading*: the "
        "same answers were compared once before, by hand; "
        f"{same} of {first} rows give the same numbers, the others say why not.",
        "## Captions: CHAIR_s (COCO, family wordnet)",
        table(CAPTIONS, by_task["chair"]),
        "The same rows, other numbers:",
        table(MORE, by_task["chair"]),
        "## Yes/no: POPE (COCO)",
        table(QUESTIONS, by_task["pope"]),
        "## Strategy, its own sampled baseline, plain greedy",
        "Greedy is another repository's throughout (the same model and pictures; for POPE with "
        "another prompt).",
        three_way(claims),
        "## Descriptions: AMBER (1004 pictures, without word similarity)",
        "No greedy baseline was released.",
        table(DESCRIPTIONS, by_task["amber"]),
        "## Prints",
        "Of other papers (OPERA, HALC, less-is-more, PAI) no table was held against these answers.",
        prints(claims),
        "## Not computed here",
        "Numbers of the first reading, not made again: the answers may not be passed on, or there "
        "are none.",
        grid(
            ["claim", "why", "first reading"], [[c["name"], c["why"], c["numbers"]] for c in closed]
        ),
        "## Answers without a pair",
        spare,
        "## Sources",
        "Commit and path of every file: `benchmarks/published/sources.tsv`; licences: "
        "`benchmarks/published/NOTICE`.",
        grid(
            ["repository", "files"], [[name, str(len(own))] for name, own in repositories.items()]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _stems(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def main() -> None:
    """Compare, write the page, say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    if lack := published.missing():
        sys.exit(f"{lack} (for AMBER's descriptions)")
    start = time.monotonic()
    with without_collector():
        claims = published.claims()
        text = page(claims)
    args.output.write_text(text, encoding="utf-8")
    print(f"wrote {args.output}: {len(claims)} claims in {time.monotonic() - start:.0f} s")
    if rows := unexplained(claims):
        sys.exit(f"not as in the first reading, and no reason given: {'; '.join(rows)}")


if __name__ == "__main__":
    main()
