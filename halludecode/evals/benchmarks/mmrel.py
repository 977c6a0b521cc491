"""MMRel: whether two things in a picture are related as the question says (arXiv:2406.09121)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import QUESTIONS, YesNoBenchmark, count, rates
from halludecode.evals.data.entries import Pictures, folder_pictures
from halludecode.evals.data.records import Record, first_fields
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2406.09121",
    "MMRel: A Relation Understanding Benchmark in the MLLM Era",
    "Nie, Jiahao and Zhang, Gongjie and An, Wenbin and Tan, Yap-Peng and others",
    "arXiv preprint",
    2024,
)


@benchmark("mmrel", paper=PAPER)
class MMRel(YesNoBenchmark):
    """Yes/no questions about spatial, comparative and action relations, a file a subset.

    Most stand in pairs about one picture, one right with yes and one with no, in the same words in
    another order ("a cat on a car", "a car on a cat"): ``pair_accuracy`` is the share of them with
    both right, and one answer for all gets none. Pairs are found by that; questions without a
    partner count in the rates alone. The paper reports POPE's rates; the release has no script, so
    answers are read as POPE does and there is nothing to compare with; its open questions are left
    out.

    CC-BY-4.0, not shipped: the questions could not be had whole where this was written. Read are
    JSON files of question_id, image, text (or question) and label (or answer) in mmrel/, MMRel/ or
    json/ of these, without its Fine-tuning/; pictures by their names below the folder, such as
    Dall-E_generated/action/ and vg/VG_100K_2/, those of SDXL from wjpoom/SPEC. Questions asked
    twice and contradictory labels are counted when they are read.
    """

    title = "MMRel"
    preset_tokens = True
    hub = "jiahaonie/MMRel@d8dc080de5844b9c7fd006be2af199240b5718b3"
    hub_files = ("json/*.json", "Dall-E_generated/*")
    needs = "mmrel/*.json (download jiahaonie/MMRel of the hub) with the pictures beside"
    columns = (replace(QUESTIONS, signs=(), takes={}),)
    examples = tuple(
        {"question_id": f"q{n}{answer}", "image": f"{n}.jpg", "answer": answer}
        | {"question": f"Is a {first} on a {second}?"}
        for n, things in enumerate((("cat", "car"), ("dog", "boat")))
        for answer, (first, second) in (("yes", things), ("no", things[::-1]))
    )
    metrics = (
        *YesNoBenchmark.metrics,
        Metric("pair_accuracy", "both right %", chance=25.0),
    )

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """Every file of questions, a split each."""
        if plain := super().find(folder):
            return plain
        roots = [folder / name for name in ("mmrel", "MMRel", "json")]
        roots += [folder / name / "json" for name in ("mmrel", "MMRel")]
        found = [path for root in roots for path in sorted(root.rglob("*.json"))]
        kept = [path for path in found if "Fine-tuning" not in path.parts]
        fitting = [path for path in kept if self.reads(path, first_fields(path))]
        return {self.split_of(path): path for path in fitting}

    def split_of(self, path: Path) -> str | None:
        """The name of a file of the release."""
        return None if path.stem == self.name else path.stem

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """Names are paths below the release's folder."""
        places = [folder, folder / "mmrel", folder / "MMRel", path.parent]
        known = [place for place in places if (place / "Dall-E_generated").is_dir()]
        return folder_pictures(images or (known or [folder / "images"])[0])

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question; `finish` finds its partner."""
        return self.question(record)

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples with the pair they are in: the same words about the same picture."""
        alike: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            alike[_words(sample)].append(sample)
        names: dict[Any, str] = {}
        for name, own in alike.items():
            by_label = [[s for s in own if s.label == word] for word in ("yes", "no")]
            for k, pair in enumerate(zip(*by_label, strict=False)):
                names |= {s.id: f"{name} {k}" for s in pair}
        return [replace(s, facts={**s.facts, "pair": names.get(s.id, "")}) for s in samples]

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """The picture, which pairs share."""
        return str(line["image"])

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The question with yes and the one with no."""
        return line["pair"] or None

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """POPE's counts, and pairs that are answered whole."""
        rows = [(self.cluster(x), count(x["parsed"], x["label"], x["answer"])) for x in lines]
        pairs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for line in lines:
            if line["pair"]:
                pairs[line["pair"]].append(line)
        for own in pairs.values():
            if len(own) == 2:
                both = float(all(line["score"] for line in own))
                rows.append((self.cluster(own[0]), {"pairs": 1.0, "both": both}))
        return self.tally(lines, rows, _formula, {})


def _words(sample: Sample) -> str:
    """Picture and words of a question, these in no order."""
    return " ".join((str(sample.image), *sorted(re.findall(r"[\w-]+", sample.question.lower()))))


def _formula(s: Sums) -> dict[str, np.ndarray]:
    found = {"pair_accuracy": ratio(s["both"], s["pairs"])} if "pairs" in s else {}
    return {**rates(s), **found}
