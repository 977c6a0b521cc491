"""MMVP: one question about two pictures that CLIP takes for alike (arXiv:2401.06209)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import LmmsEvalTask, Metric
from halludecode.evals.benchmarks.choice import (
    FIRST_OPTION,
    ORDER_BIAS,
    ChoiceBenchmark,
    choice_counts,
    choice_rates,
    lettered,
)
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, read_id, said
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

PAPER = Paper(
    "2401.06209",
    "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs",
    "Tong, Shengbang and Liu, Zhuang and Zhai, Yuexiang and Ma, Yi and others",
    "CVPR",
    2024,
)
ASKED = "\nAnswer with the option's letter from the given choices directly."
# Two pairs whose pictures were mixed up in the release; lmms-eval's copy exchanges their answers.
RELEASED = {99: "A", 100: "B", 279: "A", 280: "B"}
CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
_OPTION = re.compile(r"\(([a-zA-Z])\)")
# Where a letter is looked for: the first of these that finds one decides.
_PLACES = (
    r"\A\(?([ab])\)?\.?\Z",  # alone
    r"\A\(?([ab])\)?[.\s]",  # in front
    r"answer\s+is\s+\(?([ab])",
    r"option\s+\(?([ab])",
    r"([ab])\)?(?:\s|\Z)",  # at the end of any word
    r"\A([ab])",  # what any word begins with
)
_KEYS = {
    "index": ("index", "Index"),
    "question": ("question", "Question"),
    "options": ("options", "Options"),
    "answer": ("answer", "Correct Answer"),
}


@benchmark("mmvp", paper=PAPER)
class MMVP(ChoiceBenchmark):
    """300 pictures in 150 pairs: one question a pair, with two options, right once each.

    The release has GPT-4 judge free answers; here options have letters, asked for and read as
    lmms-eval does. A pair counts if both are right: guessing gets 50 % of answers and 25 % of
    pairs, one letter for all gets none. Known of the data (their README and lmms-eval issue 1018):
    the answers of pairs 99/100 (elephant) and 279/280 (person) are exchanged in the release, right
    in lmms-lab-eval/MMVP; ``labels`` names which are scored, whichever copy is read. MMVP/MMVP on
    the hub shows pictures without questions as a table, so its files are fetched. Which commit of
    either was current could not be looked up, so none is pinned: give ``--data MMVP/MMVP@COMMIT``
    with all 40 digits; the one that was read is in ``run.json``. Not shipped: no licence of the
    data could be read here, nor the questions, so duplicates are counted when they are read; no
    answers to it were released.
    """

    labels: str = param(
        "released",
        "Whose answers: the release's, or with the four that lmms-eval corrects.",
        choices=("released", "corrected"),
    )

    title = "MMVP"
    whole = True
    files = ("mmvp.jsonl", "mmvp/Questions.csv", "MMVP/Questions.csv", "Questions.csv")
    needs = (
        "Questions.csv with 'MMVP Images' beside it, or MMVP/MMVP or lmms-lab-eval/MMVP of the hub"
    )
    hub = "MMVP/MMVP"
    hub_files = ("Questions.csv", "MMVP Images/*")
    columns = (
        Columns({**_KEYS, "image": ("image",)}),
        Columns(_KEYS, pictures=()),  # the release's table: pictures are numbered
    )
    examples = tuple(
        {"index": n, "question": "Is it open?", "options": "(a) Open (b) Closed"}
        | {"answer": f"({'ab'[n % 2]})", "image": f"{n}.jpg"}
        for n in (1, 2, 3, 4)
    )
    metrics = (
        Metric("pair_accuracy", "both right %", chance=25.0),
        Metric("accuracy", "accuracy %", guessing=50.0, chance=50.0),
        ORDER_BIAS,
    )
    more_metrics = (FIRST_OPTION, Metric("every_order", "right in every order %"))
    lmms_eval = LmmsEvalTask(
        "mmvp",
        metrics={
            "accuracy": ("mmvp_accuracy", 1.0, True),
            "pair_accuracy": ("mmvp_pair_accuracy", 1.0, True),
        },
    )

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """The release has them in a folder beside its table."""
        return folder_pictures(images or first_folder(path.parent, "MMVP Images", "images"))

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """The question about one picture of a pair."""
        cells, index = record.fields, read_id(record.fields["index"])
        if not isinstance(index, int) or index < 1:
            raise InvalidData(f"{record.where}: index {index!r} is no number from 1.")
        parts = _OPTION.split(said(cells["options"]))
        options = [text.strip() for text in parts[2::2]]
        label = said(cells["answer"]).strip().strip("()").upper()
        if len(options) != 2 or not all(options) or label not in ("A", "B"):
            raise InvalidData(
                f"{record.where}: options {cells['options']!r} and answer {cells['answer']!r} are "
                "not '(a) ... (b) ...' and one of (a) and (b)."
            )
        known = RELEASED if self.labels == "released" else CORRECTED
        sample = Sample(
            index,
            said(cells["question"]).strip(),
            cells.get("image") or f"{index}.jpg",
            known.get(index, label),
            where=record.where,
            group=f"pair {(index + 1) // 2}",
        )
        return self.orders(sample, options)

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """A pair is two pictures, in every order asked."""
        return line["group"], 4 if self.rotate else 2

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The same question, options in the same order."""
        return f"{line['group']} {line['order']}"

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """As lmms-eval asks."""
        return f"{sample.question}\n{lettered(sample.facts['options'])}{ASKED}"

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The letter that lmms-eval finds in an answer."""
        found = (re.search(place, answer.strip(), re.I) for place in _PLACES)
        letter = next((match.group(1).upper() for match in found if match), "other")
        return {"parsed": letter, "score": int(letter == sample.label)}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Answers, pairs of every order, and questions over all orders."""
        rows, both = [], {}
        for name, group in self.grouped(lines).items():
            rows += [(name, choice_counts(line["parsed"], line["label"])) for line in group]
            pairs: dict[int, int] = {}
            questions: dict[str, int] = {}
            for line in group:
                question = str(line["id"]).partition(" ")[0]
                pairs[line["order"]] = pairs.get(line["order"], 1) * line["score"]
                questions[question] = questions.get(question, 1) * line["score"]
            both[name] = int(all(pairs.values()))
            counts = {"pairs": len(pairs), "both": sum(pairs.values())}
            counts |= {"questions": len(questions), "every": sum(questions.values())}
            rows.append((name, {key: float(count) for key, count in counts.items()}))
        shares = {} if self.rotate else {"pair_accuracy": both}
        return self.tally(lines, rows, _rotated if self.rotate else _formula, shares)


def _formula(s: Sums) -> dict[str, np.ndarray]:
    return {"pair_accuracy": ratio(s["both"], s["pairs"]), **choice_rates(s)}


def _rotated(s: Sums) -> dict[str, np.ndarray]:
    return {**_formula(s), "every_order": ratio(s["every"], s["questions"])}
