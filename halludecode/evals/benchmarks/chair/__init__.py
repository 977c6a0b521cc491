"""CHAIR: objects that a caption names and its picture does not hold (arXiv:1809.02156)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.answer_file import Given, texts_of
from halludecode.evals.benchmarks.base import (
    Answers,
    Benchmark,
    LmmsEvalTask,
    Metric,
    MetricPlot,
)
from halludecode.evals.benchmarks.chair import files as caption_files
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair.caption_records import write_sentences
from halludecode.evals.benchmarks.chair.image_ids import check_among, check_ids, load_ids
from halludecode.evals.benchmarks.chair.shortening import CutCaptions
from halludecode.evals.benchmarks.chair.showing import ShownCaptions
from halludecode.evals.benchmarks.chair.word_list import Lines, categories_of, read_lines, reader_of
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.data.answers import naming
from halludecode.evals.data.columns import Columns, said, words_of
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id, Score

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

PAPER = Paper(
    "1809.02156",
    "Object Hallucination in Image Captioning",
    "Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor and "
    "Saenko, Kate",
    "EMNLP",
    2018,
)


_COCO_NAME = re.compile(r"(?:.*[/\\])?(?:COCO_\w+_)?(\d+)(?:\.(?:jpg|jpeg|png))?", re.I)
_OPTIONS = ("family", "gt_family", "incomplete", "image_ids", "synonyms")


@benchmark("chair", paper=PAPER)
class CHAIR(CutCaptions, ShownCaptions, Benchmark):
    """Captions, their object words counted against COCO's annotations."""

    truth_in = ""  # the truth of COCO 2014 is shipped
    title = "CHAIR"
    text_kind = "caption"
    needs = "annotations/instances*.json in the folder, or --annotations INSTANCES.json"
    standard = 2
    wording = "caption"
    max_new_tokens = 512
    preset_tokens = True
    aliases: ClassVar[Mapping[str, str]] = {name: name for name in _OPTIONS}
    scorer_options = ("captions", "details")
    answers_what = "image of the annotations"
    columns = (
        Columns(
            needs={
                "image_id": ("image_id", "file_name", "question_id", "id"),
                "image": ("image",),
            },
            takes={
                "objects": ("objects", "gt_object"),
                "image_source": ("file_name", "image_path"),
            },
            signs=tuple(
                frozenset({name}) for name in ("objects", "gt_object", "file_name", "coco_url")
            ),
            names=("image_source", "image_id"),
            single=True,
        ),
    )
    examples = (
        {"image_id": 1, "image": "1.png", "objects": ["dog"]},
        {"image_id": 2, "image": "2.png", "objects": ["cat", "car"]},
    )
    metrics = (
        Metric("chair_i", "CHAIR_i %", lower_is_better=True, control="length", headline=True),
        Metric("chair_s", "CHAIR_s %", lower_is_better=True, control="length", headline=True),
        Metric("recall", "recall %", control="length", headline=True),
        Metric(
            "length",
            "length",
            scale=1.0,
            lower_is_better=None,
            axis="mean length of a caption, tokens",
        ),
    )
    plots = (
        MetricPlot(
            "CHAIR against recall and length",
            (("recall", "chair_i"), ("length", "chair_i")),
            "Saying less invents less: a strategy is better when it moves down without moving "
            "left.",
        ),
    )
    length_curves = ("chair_i", "recall")
    word_budgets = ("chair_s", "chair_i")
    object_metrics = ("chair_i", "chair_s")
    lmms_eval = LmmsEvalTask(
        "coco_cap_chair",
        metrics={
            "chair_i": ("coco_cap_chair_i", 100.0, False),
            "chair_s": ("coco_cap_chair_s", 100.0, False),
            "recall": ("coco_cap_recall", 100.0, True),
        },
    )

    family: str = param(
        "wordnet", "how captions' words become objects: wordnet, pattern or opera_published"
    )
    gt_family: str | None = param(None, "the same for the ground truth; None is as family")
    path: str = param("auto", "what finds the words: nltk, tables, or auto, nltk if installed")
    incomplete: str | None = param(
        None, "keep or drop an unfinished last sentence; None is the prompt preset's"
    )
    image_ids: str | tuple[int, ...] | None = param(
        None, "exactly these pictures: chair500, or a file with one image id a line"
    )
    synonyms: str | tuple[str, ...] | None = param(
        None, "object words of your own: a file of lines 'category, word, word ...', or its lines"
    )

    # Reading ------------------------------------------------------------------------------------

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """``annotations/instances*.json``."""
        found = caption_files.first(folder / "annotations", "instances")
        return {} if found is None else {None: found}

    def reads(self, path: Path, first: Mapping[str, Any]) -> bool:
        """Whether a file is a COCO instances file."""
        return "images" in first and "annotations" in first

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """The pictures of a COCO instances file, with their true objects."""
        listed, captions = (
            caption_files.pictures(path),
            caption_files.captions_beside(path, images is not None),
        )
        if images is not None:  # COCO lists tens of thousands: the folder says which are meant
            present = {picture.name for picture in images.iterdir()}
            listed = [(i, name) for i, name in listed if name in present]
        if wanted := self.ids():
            names = dict(listed)
            check_ids(wanted, names, f"{path} and its pictures")
            listed = [(i, names[i]) for i in wanted]
        # Reference captions are tagged word by word, which is slow for all of COCO.
        chosen = listed[:limit]
        _, gt_family = self._families()
        told = {"family": gt_family, "path": self.path, "images": {i for i, _ in chosen}}
        told["synonyms"] = self.own_words()
        truth = chair.ground_truth(path, captions, **told)
        return [
            Sample(i, "", name, objects=tuple(sorted(truth[i])), where=f"{path}: image {i}")
            for i, name in chosen
        ]

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """A picture with its objects, which of COCO 2014 are known."""
        where, given = record.where, said(record.fields["image_id"])
        digits = re.fullmatch(r"(?:COCO_\w+_)?(\d+)(?:\.jpg)?", given)
        if digits is None:
            raise InvalidData(
                f"{where}: image id {given!r} is neither a number nor COCO's file name."
            )
        name = int(digits[1])
        objects = self._objects(name, record)
        lines = self.own_words()
        foreign = [thing for thing in objects if thing not in categories_of(lines)]
        if foreign:
            whose = "CHAIR's 80 COCO categories" if lines is None else "those of --synonyms"
            raise InvalidData(f"{where}: object {foreign[0]!r} is not among {whose}.")
        objects = tuple(sorted(set(objects)))
        return Sample(name, "", record.fields["image"], objects=objects, where=where)

    def _objects(self, image: int, record: Record) -> Iterable[str]:
        if "objects" in record.fields:
            return words_of(record.fields["objects"], record.where)
        _, gt_family = self._families()
        if gt_family != "wordnet" or self.synonyms is not None:
            what = repr(gt_family) if gt_family != "wordnet" else "words of your own"
            raise InvalidData(
                f"{record.where}: without a column of objects the shipped sets are the truth, "
                f"which are of the wordnet family, not {what}."
            )
        if image not in _shipped():
            raise InvalidData(
                f"{record.where}: image id {image} is none of COCO 2014, whose objects are known; "
                "give a column of objects."
            )
        return _shipped()[image]

    def order(self, samples: Sequence[Sample], where: str) -> Sequence[Sample]:
        """The pictures of ``image_ids`` in their order; `load` has taken no others."""
        wanted = self.ids()
        if [s.id for s in samples] == list(wanted[: len(samples)]) or not wanted:
            return samples
        by_id = {sample.id: sample for sample in samples}
        check_ids(wanted, [int(i) for i in by_id], where)
        return [by_id[i] for i in wanted]

    def enough(
        self, groups: Mapping[str | None, Sequence[str]], limit: int, table: Columns
    ) -> bool:
        """Pictures of a list may stand anywhere."""
        return not self.ids() and super().enough(groups, limit, table)

    def ids(self) -> tuple[int, ...]:
        """The pictures asked for; () is all."""
        given = self.image_ids
        return given if isinstance(given, tuple) else load_ids(given) if given else ()

    def own_words(self) -> Lines | None:
        """Object words in place of CHAIR's own; None is these."""
        given = self.synonyms
        return read_lines(given) if isinstance(given, str) else given

    # Scoring ------------------------------------------------------------------------------------

    def _families(self) -> tuple[str, str]:
        return chair.families_of(self.family, self.gt_family)

    def settled(self, preset: Preset) -> Self:
        """Families, what reads captions on this machine, the last sentence; refuses bad ones."""
        (family, gt_family), incomplete = self._families(), self.incomplete or preset.incomplete
        chair.trim("", incomplete=incomplete)
        self.ids()
        lines = self.own_words()
        path = reader_of(lines, family, self.path).path
        made = {"family": family, "gt_family": gt_family, "path": path, "incomplete": incomplete}
        return replace(self, **made, synonyms=lines)

    def recipe(self) -> dict[str, Any]:
        """How captions are scored."""
        made = {"family": self.family, "gt_family": self.gt_family, "path": self.path}
        lines = self.own_words()
        more = {} if lines is None else {"synonyms": list(lines)}
        return {**made, "incomplete": self.incomplete, **more}

    def record(self) -> dict[str, Any]:
        """The list its pictures were chosen by."""
        return {} if self.image_ids is None else {"image_ids": {self.name: str(self.image_ids)}}

    def scored_text(self, answer: str) -> str:
        """An answer, perhaps without its unfinished sentence."""
        return chair.trim(answer, incomplete=self.incomplete or "keep")

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """What a caption names.

        Returns:
            ``parsed`` lists the objects mentioned, those not in the picture, the caption's words as
            the scorer counts them, and which of these name what is not there; ``score`` is the
            share of mentions that are (1 when nothing is mentioned).
        """
        words = reader_of(self.own_words(), self._families()[0], self.path)
        reading = words.read(self.scored_text(answer))
        wrong = [m for m in reading.mentions if m.object not in (sample.objects or ())]
        named = len(reading.mentions)
        parsed = {
            "generated": reading.objects,
            "hallucinated": [m.object for m in wrong],
            "words": list(reading.words),
            "hallucinated_words": [[reading.words[m.index], m.object] for m in wrong],
        }
        return {"parsed": parsed, "score": 1 - len(wrong) / named if named else 1.0}

    def score(self, lines: Sequence[Mapping[str, Any]], max_words: int | None = None) -> Score:
        """Scores captions, perhaps cut after a number of words."""
        # An unfinished sentence goes first: a cut caption seldom ends with a period.
        texts = [chair.Caption(x["id"], self.scored_text(x["answer"])) for x in lines]
        truth = {line["id"]: frozenset(line["objects"]) for line in lines}
        named = {"family": self.family, "gt_family": self.gt_family, "path": self.path}
        named["synonyms"] = self.own_words()
        scored = chair.score(texts, truth, **named, incomplete="keep", max_words=max_words)
        return replace(scored, notes={**scored.notes, "incomplete": self.incomplete or "keep"})

    # Answers made elsewhere ---------------------------------------------------------------------
    def truths(
        self, annotations: Path | None, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """The pictures that the answers name, with their true objects."""
        chair.trim("", incomplete=self.incomplete or "keep")  # refuses what is neither
        cells = {c for _, own in files for r in own for n in r.fields for c in self._may_name(r, n)}
        given = (annotations, options.get("captions"), self._families()[1], self.path, cells)
        return {None: caption_files.truth_of(*given, self.own_words())}

    def _may_name(self, record: Record, column: str) -> Iterable[Id]:
        """What a cell may say of its picture: COCO's id, and the stem of a file's name."""
        cell = record.fields[column]
        found = self.answer_id(record.fields, column)
        stem = [PurePosixPath(cell).stem] if isinstance(cell, str) and len(cell) < 256 else []
        return stem if found is None else [found, *stem]

    def answer_id(self, fields: Mapping[str, Any], column: str) -> Id | None:
        """COCO's image id, also as its file names of 2014 and 2017 have it."""
        cell = fields[column]
        if isinstance(cell, str) and (digits := _COCO_NAME.fullmatch(cell.strip())):
            return int(digits[1])
        return super().answer_id(fields, column)

    def check_given(self, own: Given) -> None:
        """All of ``image_ids`` and no other pictures, where these are given."""
        if wanted := self.ids():
            check_among(wanted, own, str(self.image_ids))
            check_ids(wanted, [int(i) for i in own.answers], str(own.path))

    def score_given(
        self,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """Captions, all of ``image_ids`` where these are given; see `chair.score`."""
        ((split, samples),) = asked.items()
        own, (family, gt_family) = given[split], self._families()
        self.check_given(own)
        texts, _ = texts_of(self, samples, own.answers, rule)
        truth = {int(s.id): frozenset(s.objects or ()) for s in samples}
        with naming(own.path):
            scored = chair.score(
                [chair.Caption(int(i), text) for i, text in texts.items()],
                truth,
                family=family,
                gt_family=gt_family,
                path=self.path,
                incomplete=self.incomplete or "keep",
                synonyms=self.own_words(),
            )
        told = caption_files.captions_told(options.get("annotations"), options.get("captions"))
        return replace(scored, notes=scored.notes | told)

    def ways(self, **options: Any) -> list[str]:
        """Which path finds the words, and what the truth of files is."""
        lines, given = self.own_words(), (options.get("annotations"), options.get("captions"))
        path = reader_of(lines, self._families()[0], self.path).path
        return caption_files.ways_of_reading(path, *given, lines)

    def remarks(self, score: Score) -> list[str]:
        """Captions that only look good."""
        return chair.empty_remarks(score)

    def summary(self, score: Score) -> dict[str, Any]:
        """The mentions of every caption."""
        keys = ("image_id", "generated", "hallucinated", "mentions")
        return {
            "empty": len(score.notes["empty"]),
            "without_objects": score.notes["without_objects"],
            "sentences": [{key: o[key] for key in keys} for o in score.outcomes.values()],
        }

    def written(self, score: Score, **options: Any) -> dict[str, Any]:
        """The list of pictures, and the words of every caption where a file is given for them."""
        told = dict[str, Any]() if self.image_ids is None else {"image_ids": str(self.image_ids)}
        if (details := options.get("details")) is not None:
            told["details"] = {"file": str(details), "words": write_sentences(score, details)}
        return told


@cache
def _shipped() -> Mapping[int, frozenset[str]]:
    return chair.load_truth()
