"""PhD: a question with yes and one with no, plain or under a false context (arXiv:2403.11116)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import YES_RATIO, Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import YesNoBenchmark, count, rates
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.entries import Pictures, first_folder
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import EvalImage, Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

PAPER = Paper(
    "2403.11116",
    "PhD: A ChatGPT-Prompted Visual hallucination Evaluation Dataset",
    "Liu, Jiazhen and Fu, Yuhan and Xie, Ruobing and Xie, Runquan and others",
    "CVPR",
    2025,
)
FOLLOW = (
    " In case there is an inconsistency between the context and the image content, you should "
    "follow the image. "
)
MODES = ("base", "iac", "sec", "icc", "ccs")
_QUESTIONS = {name: (name,) for name in ("yes_question", "no_question", "task")}
_TAKES = {name: (name,) for name in ("context", "ccs_description")}
_PLACES = ("train2014/COCO_train2014_{:0>12}.jpg", "val2014/COCO_val2014_{:0>12}.jpg")
_COUNTER = ("CCS_images/{}.png",)


@benchmark("phd", paper=PAPER)
class PhD(YesNoBenchmark):
    """Pairs of questions about one picture, one right with yes and one with no.

    ``mode``: base asks as it is, iac and icc put an inaccurate or an incorrect context before, ccs
    asks about pictures against common sense; later releases call iac sec (specious). ``index`` is
    the harmonic mean of the recalls of yes and of no, by task as well; one answer for all gets 0 of
    it and of pairs. The release defines that number in its README and has no script, rule for
    reading answers or answers of models:
    answers are read as POPE does, and there is nothing to compare with. data.json of
    AIMClab-RUC/PhD is read at 452e9b3be62f908b71cdec909f2ca4770d39d4b9, COCO's pictures come from
    --images; jiazhen-code/PhD has it too. Its licence could not be read, so it is not shipped; it
    was too large to be had here, so questions asked twice and contradictory labels are counted when
    they are read.
    """

    mode: str = param("base", "Which of the four modes.", choices=MODES)

    title = "PhD"
    whole = True
    preset_tokens = True
    hub = "AIMClab-RUC/PhD@452e9b3be62f908b71cdec909f2ca4770d39d4b9"
    hub_files = ("data.json", "CCS_images/*", "images/*")
    files = ("phd.jsonl", "phd/data.json", "PhD/data.json", "data.json")
    needs = "phd/data.json with images/{train2014,val2014,CCS_images} beside it"
    columns = (
        Columns({**_QUESTIONS, "image": ("image", "image_path")}, _TAKES),
        Columns({**_QUESTIONS, "image_id": ("image_id",)}, _TAKES, pictures=()),
    )
    examples = tuple(
        {"image": f"{n}.jpg", "task": ("object", "counting")[n]}
        | {"yes_question": f"Is there {n}?", "no_question": f"Is there no {n}?"}
        for n in (0, 1)
    )
    metrics = (
        Metric("index", "PhD index", chance=50.0),
        Metric("pair_accuracy", "both right %", chance=25.0),
        Metric("accuracy", "accuracy %", control="yes_ratio", headline=True, chance=50.0),
    )
    more_metrics = (Metric("f1", "F1 %", headline=True), YES_RATIO)

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """COCO's pictures of 2014 by number, in either part, or the release's own."""
        root = images or first_folder(path.parent, "images")
        known: dict[str, EvalImage] = {}

        def find(name: str, where: str) -> EvalImage:
            if name not in known:
                patterns = _COUNTER if self.mode == "ccs" else _PLACES
                places = [root / name, *(root / pattern.format(name) for pattern in patterns)]
                found = next((place for place in places if place.is_file()), None)
                if found is None:
                    tried = " nor ".join(map(str, places[1:]))
                    raise InvalidData(f"{where}: picture {tried} does not exist.")
                known[name] = EvalImage.from_file(found, name)
            return known[name]

        return find

    def owns(self, record: Record) -> bool:
        """Whether a row is of the mode: pictures against common sense are told by a description."""
        return (record.fields.get("ccs_description") is not None) == (self.mode == "ccs")

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """Both questions of a row."""
        cells, before = record.fields, ""
        if self.mode in ("iac", "sec", "icc"):
            contexts = cells.get("context")
            if not isinstance(contexts, Mapping) or not isinstance(contexts.get(self.mode), str):
                raise InvalidData(f"{record.where}: there is no context {self.mode!r} in it.")
            before = contexts[self.mode] + FOLLOW
        image = said(cells["image"] if "image" in cells else cells["image_id"])
        facts = {"skill": said(cells["task"])}
        for label in ("yes", "no"):
            asked = before + said(cells[f"{label}_question"])
            yield Sample(label, asked, image, label, facts=facts, where=record.where)

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Names the pairs of a picture and task in their order: the data have no ids."""
        met = Counter[str]()
        named = []
        for sample in samples:
            name = f"{sample.image} {sample.facts['skill']}"
            met[name] += sample.label == "yes"
            pair = f"{name} {met[name]}"
            named.append(replace(sample, id=f"{pair} {sample.label}", group=pair))
        return named

    def group_of(self, line: Mapping[str, Any]) -> tuple[str, int]:
        """A pair is two."""
        return line["group"], 2

    @classmethod
    def cluster(cls, line: Mapping[str, Any]) -> str:
        """The picture: several pairs may be about one."""
        return str(line["image"])

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The question with yes and the one with no."""
        return line["group"]

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Recalls of yes and no, over all and by task, and pairs."""
        rows = []
        for line in lines:
            counts = count(line["parsed"], line["label"], line["answer"])
            for name in ("all", line["skill"]):
                counts |= {f"{name}.{line['label']}": 1.0}
                counts |= {f"{name}.{line['label']}.right": float(line["score"])}
            rows.append((self.cluster(line), counts))
        for group in self.grouped(lines).values():
            both = float(all(line["score"] for line in group))
            rows.append((self.cluster(group[0]), {"pairs": 1.0, "both": both}))
        return self.tally(lines, rows, _formula, {})


def _formula(s: Sums) -> dict[str, np.ndarray]:
    tasks = sorted({name.partition(".")[0] for name in s if name.endswith(".right")} - {"all"})
    found = {"index": _index(s, "all"), "pair_accuracy": ratio(s["both"], s["pairs"])}
    return found | {f"index.{task}": _index(s, task) for task in tasks} | rates(s)


def _index(s: Sums, task: str) -> np.ndarray:
    yes, no = (ratio(s[f"{task}.{word}.right"], s[f"{task}.{word}"]) for word in ("yes", "no"))
    return np.where((yes + no) == 0, 0.0, ratio(2 * yes * no, yes + no))
