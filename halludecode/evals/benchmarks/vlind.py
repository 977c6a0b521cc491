"""VLind-Bench: four tests in a row, the last of language priors alone (arXiv:2406.08702)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.columns import Columns, said
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Score, Sums, ratio

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

PAPER = Paper(
    "2406.08702",
    "VLind-Bench: Measuring Language Priors in Large Vision-Language Models",
    "Lee, Kang-il and Kim, Minbeom and Yoon, Seunghyun and Kim, Minsung and others",
    "arXiv preprint",
    2024,
)
WORDS = ("True", "False")
STAGES = ("CK", "VP", "CB", "LP")
STYLES = {"photorealistic": range(4), "illustration": range(4, 8), "cartoon": range(8, 12)}
ONLY = "Only respond in True or False."
FORGET = "Forget real-world common sense and just follow the information provided in the"
ASKED = {
    "CK": f"Based on the common sense, is the given statement true or false? {ONLY}",
    "VP": f"Based on the image, is the given statement true or false? {ONLY}",
    "CB": f"Based on the context, is the given statement true or false? {FORGET} context. {ONLY}",
    "LP": f"Based on the image, is the given statement true or false? {FORGET} image. {ONLY}",
}
_RELEASE = {
    **{n: (n,) for n in ("concept", "context_id", "context", "factual_context", "best_img_id")},
    **{n: (n,) for n in ("true_statement", "false_statement", "existent_noun")},
    "absent_noun": ("non-existent_noun",),
    "votes": ("aggregated_human_label_good_images",),
}


@benchmark("vlind", paper=PAPER)
class VLindBench(Benchmark):
    """Statements about facts and about a picture against them, true and false: four tests in a row.

    A test is passed if the true statement is called true and the false one false. CK: the fact is
    known; VP: what the picture shows is seen; CB: the context in words is followed, of those that
    know; LP: the picture is followed, the mean over an instance's good pictures, of instances that
    passed the three before. ``CB_all`` and ``LP_all`` count all instances. As the scorer of the
    release has it, a guess passes each test in 25 %, and one word for all passes none.

    Its code is Apache-2.0, its data CC-BY-SA-4.0 (not shipped): data.json and images/, 5 GB, are
    fetched from klee972/VLind-Bench on the hub. Which commit was current could not be looked up, so
    none is pinned: give ``--data klee972/VLind-Bench@COMMIT`` with all 40 digits; the one that was
    read is in ``run.json``. Its files could not be had where this was written: nothing of them is
    counted here, and no answers to it were released.
    """

    votes: int = param(2, "People, of three, who must have found a picture good.", ge=0, le=3)
    style: str = param("all", "Style of the pictures asked about.", choices=("all", *STYLES))

    title = "VLind-Bench"
    text_kind = "choice"
    whole = True  # an instance
    wording = "own"
    tells_unparsed = True
    files = (
        "vlind.jsonl",
        *(f"{folder}/data.json" for folder in ("vlind", "VLind-Bench", "data")),
        *("VLind-Bench Dataset/data.json", "data.json"),  # as the hub has them
    )
    needs = "vlind/data.json with images/ beside it, or klee972/VLind-Bench of the hub"
    hub = "klee972/VLind-Bench"
    hub_files = ("*data.json", "*.jpg")
    columns = (
        Columns(  # a question a row
            {n: (n,) for n in ("instance", "stage", "statement", "answer", "image")},
            {"context": ("context",), "concept": ("concept",)},
        ),
        Columns(_RELEASE, pictures=()),
    )
    examples = tuple(
        {"instance": n, "stage": stage, "statement": f"{n} is {answer}.", "answer": answer}
        | {"image": f"{n}_{'fact' if stage == 'CK' else 'edit'}.jpg", "context": f"{n}, edited."}
        for n in (0, 1)
        for stage in STAGES
        for answer in WORDS
    )
    metrics = (
        *(Metric(f"S_{stage}", f"{stage} passed %", chance=25.0) for stage in STAGES),
        Metric("CB_all", "CB of all %", chance=25.0),
        Metric("LP_all", "LP of all %", chance=25.0),
    )

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """In images/ beside data.json, facts and what is against them apart."""
        return folder_pictures(images or first_folder(path.parent, "images"))

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """One question, or all of an instance of the release."""
        cells = record.fields
        if "stage" not in cells:
            return self._instance(record)
        stage, answer = said(cells["stage"]), said(cells["answer"]).strip().capitalize()
        if stage not in STAGES or answer not in WORDS:
            raise InvalidData(
                f"{record.where}: stage {stage!r} and answer {cells['answer']!r} are not one of "
                f"{', '.join(STAGES)} and one of True and False."
            )
        statement, context = said(cells["statement"]), said(cells.get("context") or "")
        return _sample(record, said(cells["instance"]), stage, answer, statement, context)

    def _instance(self, record: Record) -> Iterable[Sample]:
        cells = {k: v if k == "votes" else said(v) for k, v in record.fields.items()}
        votes = cells["votes"]
        if not isinstance(votes, Mapping) or not all(isinstance(n, int) for n in votes.values()):
            raise InvalidData(f"{record.where}: the votes on pictures are no map of numbers.")
        shown = range(12) if self.style == "all" else STYLES[self.style]
        good = [n for n in map(str, shown) if votes.get(n, -1) >= self.votes]
        if not good:
            return
        name = f"{cells['concept']} {cells['context_id']}"
        place = f"{cells['concept']}/{cells['context_id']}"
        edited = f"counterfactual/{place}_{cells['context']}"
        best = f"{edited}/{cells['best_img_id']}.jpg"
        true, false = cells["true_statement"], cells["false_statement"]
        seen = [
            f"There is {cells[f'{n}_noun']} in the given image." for n in ("existent", "absent")
        ]
        fact = f"factual/{place}_{cells['factual_context']}/0.jpg"
        asked = [("CK", fact, (false, true)), ("VP", best, seen), ("CB", best, (true, false))]
        asked += [("LP", f"{edited}/{n}.jpg", (true, false)) for n in good]
        for stage, image, statements in asked:
            for answer, statement in zip(WORDS, statements, strict=True):
                made = Record(record.where, {"image": image})
                yield _sample(made, name, stage, answer, statement, cells["context"])

    def words(self, kind: str) -> tuple[str, ...]:
        """Its own."""
        return WORDS

    @classmethod
    def choices(cls, line: Mapping[str, Any]) -> tuple[str, ...]:
        """True and False."""
        return WORDS

    @classmethod
    def pair(cls, line: Mapping[str, Any]) -> str | None:
        """The true and the false statement of a test."""
        return f"{line['group']} {line['stage']} {line['image']}"

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """As published."""
        stage, context = sample.facts["stage"], sample.facts["context"]
        told = f"Context: {context}\n" if stage == "CB" else ""
        return f"{told}Statement: {sample.question}\n{ASKED[stage]}"

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """The first word that is true or false, commas and periods left out."""
        text = answer.lower().replace("\n", " ").replace(",", "").replace(".", "")
        found = (word.capitalize() for word in text.split(" ") if word in ("true", "false"))
        parsed = next(found, "other")
        return {"parsed": parsed, "score": int(parsed == sample.label)}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Tests passed, each of the instances that passed those before."""
        rows = []
        for name, group in self.grouped(lines).items():
            tests: dict[tuple[str, str], int] = {}
            for line in group:
                test = line["stage"], line["image"]
                tests[test] = tests.get(test, 1) * line["score"]
            passed = {stage: [v for (s, _), v in tests.items() if s == stage] for stage in STAGES}
            ck, vp, cb, lp = (float(np.mean(passed[stage] or [0])) for stage in STAGES)
            counts = {"instances": 1.0, "CK": ck, "VP": vp, "CB": ck * cb, "CB_all": cb}
            before = vp * ck * cb
            rows.append((name, {**counts, "before": before, "LP": before * lp, "LP_all": lp}))
        return self.tally(lines, rows, _formula, {})


def _sample(
    record: Record, instance: str, stage: str, answer: str, statement: str, context: str
) -> Sample:
    image = record.fields["image"]
    picture = f" {Path(str(image)).stem}" if stage == "LP" else ""
    facts = {"stage": stage, "context": context if stage == "CB" else ""}
    told = {"facts": facts, "where": record.where, "group": instance}
    return Sample(f"{instance} {stage}{picture} {answer}", statement, image, answer, **told)


def _formula(s: Sums) -> dict[str, np.ndarray]:
    below = {"CK": "instances", "VP": "instances", "CB": "CK", "LP": "before"}
    passed = {f"S_{stage}": ratio(s[stage], s[name]) for stage, name in below.items()}
    return passed | {name: ratio(s[name], s["instances"]) for name in ("CB_all", "LP_all")}
