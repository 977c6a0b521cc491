"""AMBER: descriptions and yes/no questions about what is and is not there (arXiv:2311.07397)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from halludecode.core.errors import InvalidData
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.evals.benchmarks.amber import scoring as amber
from halludecode.evals.benchmarks.amber import shortening
from halludecode.evals.benchmarks.amber.description_words import Describer, way_name
from halludecode.evals.benchmarks.answer_file import Given, texts_of
from halludecode.evals.benchmarks.base import Answers, Benchmark, Metric, MetricPlot
from halludecode.evals.benchmarks.registry import benchmark
from halludecode.evals.benchmarks.yes_no import QUESTIONS, YesNoBenchmark
from halludecode.evals.data.answers import naming
from halludecode.evals.data.columns import Columns, read_id, said, words_of, yes_or_no
from halludecode.evals.data.entries import Pictures, first_folder, folder_pictures
from halludecode.evals.data.records import Record
from halludecode.evals.data.samples import Sample
from halludecode.evals.statistics.score import Id, Score

if TYPE_CHECKING:
    from halludecode.evals.presets import Preset

DESCRIBE = "Describe this image."  # its query for all its descriptions
DESCRIBED = "amber/generative"  # descriptions, beside the questions, which are "amber"

PAPER = Paper(
    "2311.07397",
    "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation",
    "Wang, Junyang and others",
    "arXiv preprint",
    2023,
)


@benchmark("amber", paper=PAPER)
class AMBER(Benchmark):
    """Descriptions against lists of what is and is not there, and questions by dimension.

    Its query files say what is asked: a folder with one of them is asked that much.
    """

    truth_in = "its data folder"
    title = "AMBER"
    needs = "amber/annotations.json with query/*.json, or --annotations ANNOTATIONS.json"
    max_new_tokens: ClassVar[Mapping[str, int]] = {"amber": 16, DESCRIBED: 512}
    categories = tuple(amber.TYPES)
    aliases: ClassVar[Mapping[str, str]] = {"similarity": "similarity"}
    columns = (
        # Its questions about a picture stand in several places.
        replace(QUESTIONS, apart=True),
        Columns(
            needs={
                "question_id": ("question_id", "index", "id"),
                "image": ("image",),
                "truth": ("truth",),
                "hallu": ("hallu",),
            },
            takes={"image_source": ("image_source", "image_path")},
            signs=(frozenset({"truth", "hallu"}),),
            names=("image_source", "question_id"),
            single=True,
        ),
    )
    examples = tuple(
        {**row, "category": "discriminative-relation"} for row in YesNoBenchmark.examples
    )
    metrics = (
        Metric(
            "chair",
            "CHAIR %",
            lower_is_better=True,
            beside=(("hal", "Hal"), ("cog", "Cog")),
            short="chair",
        ),
        Metric("cover", "cover %"),
        Metric("f1", "F1 %", beside=(("accuracy", "accuracy"),)),
        Metric("amber", "AMBER %"),
        Metric("existence.f1", "existence F1 %", unless="f1"),
        Metric("attribute.f1", "attribute F1 %", unless="f1"),
        Metric("relation.f1", "relation F1 %", unless="f1"),
    )
    more_metrics = (
        Metric("accuracy", "accuracy %", control="yes_ratio"),
        Metric("hal", "Hal %", lower_is_better=True),
    )
    object_metrics = ("chair", "hal")
    plots = (
        MetricPlot(
            "CHAIR against cover",
            (("cover", "chair"),),
            "Saying less invents less: a strategy is better when it moves down without moving "
            "left.",
        ),
    )
    tells_unparsed = True
    vlmevalkit = "AMBER"

    similarity: str | Callable[..., float] | None = param(
        None, "of two words of a description: spacy:en_core_web_lg; None is none"
    )
    lexicon: str | None = param(
        None, "folder of relation.json and safe_words.txt; None is beside the data, or shipped"
    )

    # Reading ------------------------------------------------------------------------------------

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """``annotations.json`` of its data folder, or of its repository."""
        places = (folder / place for place in ("amber", "amber/data", "data", ""))
        files = (place / "annotations.json" for place in places)
        found = next((file for file in files if file.is_file()), None)
        return {} if found is None else {None: found}

    def reads(self, path: Path, first: Mapping[str, Any]) -> bool:
        """Whether a file is ``annotations.json``, or a folder holds it."""
        return (path / "annotations.json").is_file() or {"type", "truth"} <= first.keys()

    def bound_to(self, path: Path) -> Self:
        """With the word lists beside the annotations."""
        return self if self.lexicon else replace(self, lexicon=str(path))

    def load(
        self, path: Path, *, limit: int | None = None, images: Path | None = None
    ) -> list[Sample]:
        """The items that a query file asks about."""
        items = [item for item in amber.load_items(path) if item.query is not None]
        if not items:
            raise InvalidData(
                f"{_root(path)}: no query/query_*.json, which says what is asked about which "
                "picture; take AMBER's whole data folder."
            )
        return [_sample(item) for item in items]

    def pictures(self, path: Path, folder: Path, images: Path | None) -> Pictures:
        """In image/ or images/ beside the annotations or beside their folder."""
        return folder_pictures(images or first_folder(_root(path), "image", "images"))

    def owns(self, record: Record) -> bool:
        """Descriptions have no category."""
        return "truth" in record.fields or super().owns(record)

    def read(self, record: Record) -> Sample | Iterable[Sample]:
        """A description to make, or a question."""
        cells, where = record.fields, record.where
        name, image = read_id(cells["question_id"]), cells["image"]
        if "truth" not in cells:
            label, facts = yes_or_no(cells["answer"], where), {"type": cells["category"]}
            question = said(cells["question"])
            return Sample(name, question, image, label, facts=facts, where=where)
        lists = {key: words_of(cells[key], where) for key in ("truth", "hallu")}
        item = amber.make_item(Record(where, {"id": name, "type": "generative", **lists}))
        return _sample(replace(item, query=DESCRIBE, image=image))

    def finish(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Descriptions with the digest of the word lists they are read by."""
        finished, digest = list(samples), ""
        for i, sample in enumerate(samples):
            if sample.label is None:
                digest = digest or _digest(self.describer.lexicon)
                objects = [*(sample.objects or ()), *sample.facts["hallu"]]
                self.describer.check(objects, sample.where)
                facts = {**sample.facts, "lexicon": digest}
                finished[i] = replace(sample, facts=facts)
        return finished

    # Asking -------------------------------------------------------------------------------------

    def kind(self, sample: Sample) -> str:
        """Descriptions are longer than answers."""
        return DESCRIBED if sample.label is None else self.name

    def words(self, kind: str) -> tuple[str, ...]:
        """Only questions have a margin."""
        return () if kind == DESCRIBED else super().words(kind)

    def prompt(self, preset: Preset, sample: Sample) -> str:
        """Descriptions are asked for as published."""
        return sample.question if sample.label is None else super().prompt(preset, sample)

    # Scoring ------------------------------------------------------------------------------------

    @cached_property
    def describer(self) -> Describer:
        """What reads descriptions."""
        lists = amber.load_lexicon(*([self.lexicon] if self.lexicon else []))
        return amber.make_describer(lists, self.similarity)

    def judge(self, sample: Sample, answer: str) -> dict[str, Any]:
        """What a response says; a description's score is its share of true words."""
        hallu = tuple(sample.facts.get("hallu", ()))
        told = (sample.facts["type"], sample.label, tuple(sample.objects or ()), hallu)
        item = amber.AmberItem(int(sample.id), *told)
        described = sample.label is None
        found = amber.judge(item, answer, describer=self.describer if described else None)
        if not described:
            return {"parsed": found["parsed"], "score": found["correct"]}
        named, wrong = len(found["nouns"]), len(found["hallucinated"])
        parsed = {k: found[k] for k in ("nouns", "hallucinated", "covered", "thought_of")}
        return {"parsed": parsed, "score": 1 - wrong / named if named else 1.0}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """The dimensions that were asked about."""
        return amber.score_lines(lines)

    @classmethod
    def objects_named(cls, score: Score) -> Mapping[Id, int]:
        """The different nouns that AMBER knows, of every description."""
        return {i: len(set(o["nouns"])) for i, o in shortening.described(score).items()}

    @classmethod
    def cut_after_objects(cls, score: Score, objects: Mapping[Id, int]) -> Score:
        """CHAIR and Hal of the nouns up to the k-th different one."""
        return shortening.cut_after_objects(score, objects)

    def recipe(self) -> dict[str, Any]:
        """What descriptions are read by."""
        return {"similarity": way_name(self.similarity)}

    @classmethod
    def recorded(cls, recipe: Mapping[str, Any]) -> Self:
        """Lines tell all that is needed."""
        return cls()

    # Answers made elsewhere ---------------------------------------------------------------------

    def truths(
        self, annotations: Path, files: Sequence[Answers], **options: Any
    ) -> dict[str | None, list[Sample]]:
        """All its items, also those that no query file asks about."""
        found = (self.find(annotations) if annotations.is_dir() else {}).get(None, annotations)
        return {None: [_sample(item) for item in amber.load_items(found)]}

    def answerable(self, samples: Sequence[Sample], answers: Mapping[Id, str]) -> list[Sample]:
        """Those that are answered, descriptions with the digest of the word lists."""
        return list(self.finish(super().answerable(samples, answers)))

    def score_given(
        self,
        asked: Mapping[str | None, Sequence[Sample]],
        given: Mapping[str | None, Given],
        parser: str,
        rule: str,
        **options: Any,
    ) -> Score:
        """Responses to its items; see `amber.score`."""
        ((split, samples),) = asked.items()
        items = [_item(sample) for sample in samples]
        responses, _ = texts_of(self, samples, given[split].answers, rule)
        described = any(item.label is None and item.id in responses for item in items)
        lexicon = self.lexicon or options.get("annotations")
        lists = amber.load_lexicon(*([lexicon] if lexicon else [])) if described else None
        told = {"rule": parser, "similarity": self.similarity}
        told["allow_missing"] = bool(options.get("allow_missing"))
        with naming(given[split].path):
            return amber.score(items, responses, lists, **told)

    def annotation_files(self, annotations: Path) -> Mapping[str, Path]:
        """Annotations and word lists."""
        return amber.files(annotations)


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _sample(item: amber.AmberItem) -> Sample:
    facts: dict[str, Any] = {"type": item.type}
    if item.label is None:
        facts["hallu"] = list(item.hallu)
    objects = item.truth if item.label is None else None
    told = (item.query or "", item.image, item.label, objects, facts)
    return Sample(item.id, *told, where=item.where)


def _item(sample: Sample) -> amber.AmberItem:
    truth, hallu = tuple(sample.objects or ()), tuple(sample.facts.get("hallu", ()))
    told = (sample.facts["type"], sample.label, truth, hallu, sample.image, sample.question or None)
    return amber.AmberItem(int(sample.id), *told, where=sample.where)


def _digest(lexicon: amber.Lexicon) -> str:
    relation = {name: list(words) for name, words in lexicon.relation.items()}
    text = json.dumps([relation, sorted(lexicon.safe)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
