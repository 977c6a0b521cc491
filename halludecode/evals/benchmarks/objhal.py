"""Object HalBench: objects of a description that are not in the picture (arXiv:2312.00849)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.evals.benchmarks.base import Metric
from halludecode.evals.benchmarks.chair.object_words import bigrams, reader, vocabulary
from halludecode.evals.benchmarks.chair.scoring import load_truth
from halludecode.evals.benchmarks.chair.tagger import shipped
from halludecode.evals.benchmarks.judged import REFUSED, REFUSED_AND_UNREAD, UNREAD, JudgedBenchmark
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, read_id, said
from halludecode.evals.data.entries import Pictures, first_folder
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import EvalImage, Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2312.00849",
    "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human "
    "Feedback",
    "Yu, Tianyu and Yao, Yuan and Zhang, Haoye and He, Taiwen and others",
    "CVPR",
    2024,
)
SHORT = 3  # words: an answer of so few names nothing, and the judge is not asked
# What the release adds to CHAIR's list of words.
MORE = {"brother": "person", "coffee table": "dining table", "remote control": "remote"}
_PLACES = ("COCO_val2014_{:012}.jpg", "val2014/COCO_val2014_{:012}.jpg")
_PLACES += ("COCO_train2014_{:012}.jpg", "train2014/COCO_train2014_{:012}.jpg")


@benchmark("objhal", paper=PAPER)
class ObjectHalBench(JudgedBenchmark):
    """Descriptions of 300 pictures of COCO; a judge lists the objects they name, CHAIR counts them.

    ``chair_sr``: of answers that name an object of COCO's 80 kinds the share with one that is not
    there (the release's response hallucination); ``chair_i``: the share of such mentions (object
    hallucination); ``chair_s`` counts all answers. A refused or unread list, which the release asks
    for again up to a hundred times, names nothing here and is counted. The words for the judge (two
    places: question and answer) are prompt_template in eval/eval_gpt_obj_halbench.py of
    RLHF-V/RLAIF-V; its judge was gpt-3.5-turbo, asked in the role of the system.

    A name counts once an answer. Of a name of several words a pair in the list of words does, or
    else its nouns as one: no player for "tennis player", a table for "round table". The release
    tags nouns with spaCy's largest model, here CHAIR's tagger does. Its list is CHAIR's and three
    words more; the truth is CHAIR's shipped one (wordnet family, COCO 2014). Its code is
    Apache-2.0, its data CC-BY-NC-4.0 and so not shipped: obj_halbench_300_with_image.jsonl of
    RLHF-V/RLAIF-V, whose pictures (base64 in it) are taken from COCO 2014 by their ids. The file
    was too large to be had here; pictures asked about twice are counted when it is read.
    """

    title = "Object HalBench"
    max_new_tokens = 512
    files = (
        "objhal.jsonl",
        *(f"{folder}obj_halbench_300_with_image.jsonl" for folder in ("objhal/", "")),
    )
    needs = "objhal/obj_halbench_300_with_image.jsonl with COCO's pictures of 2014 in images/"
    columns = (
        Columns(
            {n: (n,) for n in ("image_id", "question")} | {"file": ("file_name",)},
            pictures=("file",),
        ),
        Columns({n: (n,) for n in ("image_id", "question")}, pictures=()),
    )
    examples = tuple(
        {"image_id": n, "question": "What is in the picture?", "file": f"{n}.jpg"}
        for n in (9, 25)  # a bowl, an orange; a giraffe
    )
    replies = ('["bowl", "giraffes"]', '["zebra"]')
    metrics = (
        Metric("chair_sr", "response hallucination %", lower_is_better=True),
        Metric("chair_i", "object hallucination %", lower_is_better=True),
    )
    more_metrics = (
        Metric("chair_s", "of all answers %", lower_is_better=True),
        Metric("recall", "objects named %"),
        Metric("words", "words", scale=1.0, lower_is_better=None, digits=1),
        *REFUSED_AND_UNREAD,
    )

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """COCO's pictures of 2014, in either part."""
        root = images or first_folder(path.parent, "images")
        known: dict[str, EvalImage] = {}

        def find(name: str, where: str) -> EvalImage:
            if name not in known:
                coco = [place.format(int(name)) for place in _PLACES if name.isdecimal()]
                places = [root / place for place in (name, *coco)]
                found = next((place for place in places if place.is_file()), None)
                if found is None:
                    raise InvalidData(f"{where}: picture {places[-1]} does not exist.")
                known[name] = EvalImage.from_file(found, name)
            return known[name]

        return find

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One picture, with its true objects."""
        cells = record.fields
        number = read_id(cells["image_id"])
        truth = _truth().get(number) if isinstance(number, int) else None
        if truth is None:
            raise InvalidData(f"{record.where}: image_id {number!r} is no picture of COCO 2014.")
        image = said(cells.get("file") or number)
        told = {"objects": tuple(sorted(truth)), "where": record.where}
        return Sample(number, said(cells["question"]), image, **told)

    def asked(self, sample: Sample, answer: str) -> Sequence[str]:
        """Question and answer."""
        return sample.question, answer

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The names that the judge lists; a short answer has none."""
        if len(answer.split()) <= SHORT:
            return {"parsed": [], "score": 1, "judged": None}
        return super().judge(sample, answer)

    def verdict(self, raw: str) -> Any:
        """A JSON list of names, alone or in the last line."""
        for text in (raw, raw.strip().split("\n")[-1]):
            try:
                names = json.loads(text)
            except ValueError:
                continue
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return names
        return UNREAD

    def right(self, verdict: Any, sample: Sample) -> bool:
        """Nothing is named that is not there."""
        return set(named(verdict)) <= set(sample.objects or ())

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """CHAIR's counts of what is named."""
        rows = []
        for line in lines:
            read, truth = line["parsed"], set(line["objects"])
            found = [] if read in (REFUSED, UNREAD) else named(read)
            wrong = sum(name not in truth for name in found)
            counts = {"n": 1.0, "naming": float(bool(found)), "flagged": float(wrong > 0)}
            counts |= {"mentions": float(len(found)), "wrong": float(wrong)}
            counts |= {"there": float(len(truth)), "met": float(len(truth & set(found)))}
            counts["words"] = float(len(line["answer"].strip().split(" ")))
            counts |= {"refused": float(read == REFUSED), "unread": float(read == UNREAD)}
            rows.append((self.cluster(line), counts))
        return self.tally(lines, rows, _formula, {})


def named(names: Sequence[str]) -> list[str]:
    """The kinds of COCO that a judge's list names, one a different name.

    Args:
        names: Names of objects, perhaps with articles and in the plural.
    """
    words = dict.fromkeys(word for name in names for word in _words(name))
    if "toilet" in words and "seat" in words:  # which is no chair
        del words["seat"]
    known = _known()
    return [known[word] for word in words if word in known]


@cache
def _words(name: str) -> tuple[str, ...]:
    """Pairs of words in the list, or else nouns that stand together, as one."""
    read = reader("wordnet", "tables")
    texts = [text for text, _, _ in read.tokens(f"a {name}".lower())]
    words = read.normalise(texts)
    pairs, found, i = _pairs(), list[str](), 0
    while i < len(words):
        two = " ".join(words[i : i + 2])
        if two in pairs:
            found.append(pairs[two])
        i += 2 if two in pairs else 1
    if found:
        return tuple(found)
    tags = shipped().tag(texts, list(range(len(texts))))
    runs = groupby(range(len(words)), lambda i: tags[i].startswith("NN"))
    return tuple(" ".join(words[i] for i in run) for noun, run in runs if noun)


@cache
def _known() -> Mapping[str, str]:
    return {**vocabulary(), **MORE}


@cache
def _pairs() -> Mapping[str, str]:
    return {**bigrams(), **{word: word for word in MORE if " " in word}}


@cache
def _truth() -> Mapping[int, frozenset[str]]:
    return load_truth()


def _formula(s: Sums) -> dict[str, np.ndarray]:
    shares = {
        "chair_sr": ("flagged", "naming"),
        "chair_i": ("wrong", "mentions"),
        "chair_s": ("flagged", "n"),
        "recall": ("met", "there"),
        "words": ("words", "n"),
    }
    found = {name: ratio(s[above], s[below]) for name, (above, below) in shares.items()}
    return found | {name: np.asarray(s[name], dtype=float) for name in ("refused", "unread")}
