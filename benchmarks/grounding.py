"""How well an explanation's numbers tell hallucinated object words from true ones.

    .venv/bin/python benchmarks/grounding.py [--dev 500] [--test 500]

Greedy captions of testbed pictures, `explain=True`; every object word (CHAIR, wordnet family) is
true or hallucinated. The development pictures (dev-iid and dev-broken) choose how a word's number
is made of its tokens' and below which grounding a word is flagged; everything reported is measured
on the others (iid and broken). Intervals resample pictures. Writes the page and the threshold that
the package ships; run it again whenever the embedded model changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from scipy.stats import mannwhitneyu

import halludecode as hd
from halludecode.analysis.grounding import REDUCE, SHIPPED, SIGNALS, Threshold, words
from halludecode.evals.benchmarks.chair.scoring import ground_truth
from halludecode.testbed import dataset

DEV = ("testbed-dev-iid", "testbed-dev-broken")
TEST = ("testbed-iid", "testbed-broken")
QUESTION = "Please describe this image in detail."
TOKENS = 90  # as in the testbed's CHAIR protocol
SUSPECT = {"grounding": -1, "entropy": 1, "mass": -1}  # which way points to a hallucination
NAMED = {"grounding": "grounding", "entropy": "entropy", "mass": "attention mass on the image"}

Statistic = Callable[["Mentions"], float]


@dataclass(frozen=True)
class Mentions:
    """Object words of captions.

    Args:
        picture: int [n], which picture a word is about.
        wrong: bool [n], whether the picture lacks the object.
        values: (signal, "mean" or "max") -> float [n].
    """

    picture: np.ndarray
    wrong: np.ndarray
    values: dict[tuple[str, str], np.ndarray]

    def at(self, places: np.ndarray) -> Mentions:
        """Some words, possibly repeated."""
        kept = {key: value[places] for key, value in self.values.items()}
        return Mentions(self.picture[places], self.wrong[places], kept)


def collect(engine: Any, name: str, count: int) -> Mentions:
    """The object words of greedy captions of one split."""
    folder = dataset(name, count)
    truth = ground_truth(*(folder / "annotations" / f for f in ("instances.json", "captions.json")))
    paths = sorted((folder / "images").iterdir())
    asked = [hd.Request(QUESTION, [path]) for path in paths]
    outputs = engine.generate(asked, "greedy", hd.Sampling(max_new_tokens=TOKENS), explain=True)
    picture, wrong = [], []
    values: dict[tuple[str, str], list[float]] = {(s, r): [] for s in SIGNALS for r in REDUCE}
    every = {r: Threshold(0.0, dict.fromkeys(SIGNALS, r), "", {}) for r in REDUCE}
    for number, (path, output) in enumerate(zip(paths, outputs, strict=True)):
        present = truth[int(path.stem.rpartition("_")[2])]
        for how, threshold in every.items():
            found = [w for w in words(output.explanation, threshold) if w.object is not None]
            for signal in SIGNALS:
                values[signal, how] += [word.values[signal] for word in found]
        picture += [number] * len(found)
        wrong += [word.object not in present for word in found]
    arrays = {key: np.array(value) for key, value in values.items()}
    return Mentions(np.array(picture), np.array(wrong), arrays)


def joined(parts: Sequence[Mentions]) -> Mentions:
    """The words of several splits, their pictures kept apart."""
    starts = np.cumsum([0, *(int(part.picture.max()) + 1 for part in parts)])
    picture = np.concatenate([p.picture + s for p, s in zip(parts, starts, strict=False)])
    wrong = np.concatenate([part.wrong for part in parts])
    keys = parts[0].values
    return Mentions(picture, wrong, {k: np.concatenate([p.values[k] for p in parts]) for k in keys})


# Numbers -----------------------------------------------------------------------------------------


def auroc(of: Mentions, signal: str, how: str) -> float:
    """How often a hallucinated word looks worse than a true one; 0.5 is chance."""
    scores = SUSPECT[signal] * of.values[signal, how]
    bad, good = scores[of.wrong], scores[~of.wrong]
    if not len(bad) or not len(good):
        return float("nan")
    return float(mannwhitneyu(bad, good, method="asymptotic").statistic / (len(bad) * len(good)))


def best_threshold(of: Mentions, how: str) -> float:
    """Below which grounding a word is flagged: where F0.5 of the flags is largest.

    F0.5 counts precision twice as much as recall: a page full of flags on true words tells nothing.
    """
    order = np.argsort(of.values["grounding", how], kind="stable")
    ranked, wrong = of.values["grounding", how][order], of.wrong[order]
    hits, flagged = np.cumsum(wrong)[:-1], np.arange(1, len(wrong))
    score = 1.25 * hits / (flagged + 0.25 * wrong.sum())
    score[ranked[1:] == ranked[:-1]] = -1  # equal words stay together
    at = int(score.argmax())
    return float((ranked[at] + ranked[at + 1]) / 2)


def rates(of: Mentions, how: str, below: float) -> tuple[float, float]:
    """Precision and recall of the flags."""
    flagged = of.values["grounding", how] < below
    hits = float((flagged & of.wrong).sum())
    return hits / max(flagged.sum(), 1), hits / max(of.wrong.sum(), 1)


def bootstrap(of: Mentions, statistics: Sequence[Statistic], resamples: int) -> np.ndarray:
    """95 % percentile intervals over pictures: [statistics, 2]."""
    rng, pictures = np.random.default_rng(0), int(of.picture.max()) + 1
    order = np.argsort(of.picture, kind="stable")
    groups = np.split(order, np.searchsorted(of.picture[order], np.arange(1, pictures)))
    drawn = np.empty((resamples, len(statistics)))
    for i in range(resamples):
        some = of.at(np.concatenate([groups[p] for p in rng.integers(0, pictures, pictures)]))
        drawn[i] = [statistic(some) for statistic in statistics]
    return np.nanpercentile(drawn, (2.5, 97.5), axis=0).T


def choose(dev: Mentions) -> tuple[dict[str, str], float]:
    """How a word's numbers are made of its tokens', and the threshold, both on ``dev``."""
    reduce = {s: max(REDUCE, key=lambda how, s=s: auroc(dev, s, how)) for s in SIGNALS}
    return reduce, best_threshold(dev, reduce["grounding"])


def measure(of: Mentions, reduce: dict[str, str], below: float, resamples: int) -> dict[str, Any]:
    """Everything reported of one set of words: values with their intervals."""
    how = reduce["grounding"]
    wanted: dict[str, Statistic] = {s: lambda m, s=s: auroc(m, s, reduce[s]) for s in SIGNALS}
    for other in ("entropy", "mass"):
        wanted[f"grounding - {other}"] = lambda m, o=other: wanted["grounding"](m) - wanted[o](m)
    wanted["precision"] = lambda m: rates(m, how, below)[0]
    wanted["recall"] = lambda m: rates(m, how, below)[1]
    ends = bootstrap(of, list(wanted.values()), resamples)
    made = {
        name: {"value": statistic(of), "low": float(low), "high": float(high)}
        for (name, statistic), (low, high) in zip(wanted.items(), ends, strict=True)
    }
    return {"words": len(of.wrong), "hallucinated": int(of.wrong.sum()), **made}


# The page ----------------------------------------------------------------------------------------


def cell(entry: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def aurocs(measured: dict[str, dict], reduce: dict[str, str]) -> str:
    """Markdown: AUROC of every signal, and the paired differences."""
    head = ["", "a word's number", *measured]
    rows = [[NAMED[s], reduce[s], *(cell(m[s]) for m in measured.values())] for s in SIGNALS]
    for other in ("entropy", "mass"):
        gaps = [cell(m[f"grounding - {other}"]) for m in measured.values()]
        rows.append([f"grounding minus {NAMED[other]}", "", *gaps])
    return table(head, rows)


def flags(measured: dict[str, dict]) -> str:
    """Markdown: what flagging at the threshold gives."""
    head = ["pictures", "object words", "hallucinated", "precision", "recall"]
    rows = []
    for name, m in measured.items():
        share = f"{m['hallucinated']} ({m['hallucinated'] / m['words']:.0%})"
        rows.append([name, str(m["words"]), share, cell(m["precision"]), cell(m["recall"])])
    return table(head, rows)


def reading(test: dict[str, Any]) -> str:
    """What the tables say, made from their numbers."""
    told = []
    for signal in SIGNALS:
        above = test[signal]["low"] > 0.5
        told.append(f"{NAMED[signal]} {'tells' if above else 'does not tell'}")
    first = f"On iid and broken together: {', '.join(told)} hallucinated object words from true "
    first += "ones (interval above 0.5 or not)."
    for other in ("entropy", "mass"):
        gap = test[f"grounding - {other}"]
        sure = gap["low"] > 0 or gap["high"] < 0
        way = "better than" if gap["value"] > 0 else "worse than"
        verdict = f"{way} {NAMED[other]}" if sure else f"not to be told apart from {NAMED[other]}"
        first += f" Grounding is {verdict}."
    lift = test["precision"]["value"] / (test["hallucinated"] / test["words"])
    return (
        f"{first} A flagged word is {lift:.1f} times as often hallucinated as any object word; "
        "the flag is a hint where to look, not a verdict."
    )


def page(record: dict[str, Any], dev: Mentions) -> str:
    """The whole page."""
    reduce, below = record["reduce"], record["grounding_below"]
    rows = [
        [NAMED[s], *(f"{auroc(dev, s, how):.3f}" for how in REDUCE), reduce[s]] for s in SIGNALS
    ]
    sizes = record["pictures"]
    measured = record["measured"]
    tested = {name: measured[name] for name in (*TEST, "both")}
    parts = [
        "# Do an explanation's numbers find hallucinated words?",
        "Made by `python benchmarks/grounding.py`; do not edit.",
        f"Greedy captions (at most {TOKENS} tokens) of {record['model']} (weights "
        f"{record['model_digest'][:16]}); {sizes['dev']} pictures of each development split, "
        f"{sizes['test']} of each test split. Object words and what pictures hold: CHAIR, wordnet "
        f"family. Grounding is log p with the image minus log p without it. In brackets: 95 % "
        f"bootstrap intervals over pictures, {record['resamples']} resamples. **These are numbers "
        "of the testbed**; they say that the measurement works, not how well it works on a real "
        "model.",
        '## AUROC of "this object word is hallucinated"',
        "Low grounding, high entropy and low attention mass count as suspicious; 0.5 is chance.",
        aurocs(tested, reduce),
        "## The flag",
        f"A word is flagged where its grounding is below **{below:.3f} nats**, the threshold with "
        "the largest F0.5 (precision counts twice as much as recall) on the development pictures.",
        flags({"development": measured["dev"], **tested}),
        "## Chosen on the development pictures",
        "Mean or maximum over a word's tokens, whichever has the larger AUROC:",
        table(["", *REDUCE, "chosen"], rows),
        reading(measured["both"]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, choose, write the page and the threshold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--dev", type=int, default=500, help="pictures of each development split")
    parser.add_argument("--test", type=int, default=500, help="pictures of each test split")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "grounding.md")
    parser.add_argument("--threshold", type=Path, default=SHIPPED)
    args = parser.parse_args()
    engine = hd.load(args.model, batch_size=args.batch_size)
    dev = joined([collect(engine, name, args.dev) for name in DEV])
    reduce, below = choose(dev)
    tests = {name: collect(engine, name, args.test) for name in TEST}
    sets = {"dev": dev, **tests, "both": joined(list(tests.values()))}
    about = engine.describe()
    record = {
        "made_by": "python benchmarks/grounding.py",
        "model": args.model,
        "model_digest": about["model_digest"],
        "dtype": about["dtype"],
        "versions": about["versions"],
        "pictures": {"dev": args.dev, "test": args.test},
        "resamples": args.resamples,
        "rule": "largest F0.5 on dev",
        "reduce": reduce,
        "grounding_below": below,
        "measured": {n: measure(m, reduce, below, args.resamples) for n, m in sets.items()},
    }
    args.threshold.parent.mkdir(parents=True, exist_ok=True)
    args.threshold.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(record, dev)
    args.output.write_text(text, encoding="utf-8")
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
