"""CHAIR: objects that a caption names and its picture does not hold.

Rohrbach et al. 2018, "Object Hallucination in Image Captioning", arXiv 1809.02156; code
LisaAnne/Hallucination. ``family`` says how caption words become objects
(`chair.object_words`), ``gt_family`` how the reference captions did; published numbers mix
them, so both are recorded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.chair.object_words import DATA, FAMILIES, CaptionReading, Reader
from halludecode.evals.benchmarks.chair.word_list import Lines, categories_of, reader_of
from halludecode.evals.data.coco import INSTANCES, REFERENCES, read_coco
from halludecode.evals.data.records import read_records, read_text
from halludecode.evals.statistics.score import Id, Score, Sums, gather, ratio

INCOMPLETE = ("keep", "drop")
# Published mixtures of word families: captions', ground truth's. OPERA's tables, which later papers
# copied, read captions by WordNet against a cache of ground truth made by pattern.
MIXTURES = {"opera_published": ("wordnet", "pattern")}
SHIPPED = DATA / "coco2014_wordnet.tsv.gz"

Truth = Mapping[int, frozenset[str]]  # image id -> COCO categories in the picture


@dataclass(frozen=True)
class Caption:
    """One caption; ``image_id`` is COCO's, ``where`` its ``file:line`` if it has one."""

    image_id: int
    text: str
    where: str = field(default="", compare=False, repr=False)


# Reading -----------------------------------------------------------------------------------------


def load_captions(path: Path | str) -> list[Caption]:
    """Reads predictions: JSON lines ``{"image_id": int, "caption": str}``.

    Raises:
        InvalidData: Unreadable, a key is missing or of the wrong type, or an image occurs twice.
    """
    captions: list[Caption] = []
    seen: dict[int, int] = {}
    for record in read_records(path):
        image = record.get("image_id", kind=int, what="an integer, COCO's image id")
        text = record.get("caption", kind=str, what="the caption")
        first = seen.setdefault(image, record.line)
        if first != record.line:
            raise InvalidData(
                f"{record.where}: image_id {image} was already used on line {first}; "
                "give one caption per image."
            )
        captions.append(Caption(image, text, record.where))
    return captions


def families_of(family: str = "wordnet", gt_family: str | None = None) -> tuple[str, str]:
    """The word families of captions and of ground truth.

    Args:
        family: ``wordnet``, ``pattern``, or a name of `MIXTURES`, which decides both.
        gt_family: Family of the ground truth; None repeats ``family``.

    Raises:
        InvalidData: Unknown family, or a mixture with another ``gt_family``.
    """
    if family in MIXTURES:
        both = MIXTURES[family]
        if gt_family not in (None, both[1]):
            raise InvalidData(
                f"CHAIR family {family!r} has ground truth of family {both[1]!r}, not "
                f"{gt_family!r}; leave gt-family out."
            )
        return both
    for name in (family, gt_family):
        if name is not None and name not in FAMILIES:
            known = ", ".join([*FAMILIES, *(MIXTURES if name is family else ())])
            raise InvalidData(f"CHAIR family {name!r} is unknown; the known ones are {known}.")
    return family, gt_family or family


def ground_truth(
    instances: Path | str,
    captions: Path | str | None = None,
    *,
    family: str = "wordnet",
    path: str = "auto",
    images: Collection[int] | None = None,
    synonyms: Lines | None = None,
) -> dict[int, frozenset[str]]:
    """The objects of every image: its annotated instances and what its reference captions name.

    Args:
        instances: COCO ``instances_*.json``.
        captions: COCO ``captions_*.json``; None counts instances only.
        family: Word family for the reference captions (`score` calls it ``gt_family``).
        path: Word path, see `halludecode.evals.benchmarks.chair.object_words.reader`.
        images: Image ids wanted; None takes all.
        synonyms: Object words in place of CHAIR's own, see `word_list.read_lines`.

    Raises:
        InvalidData: A file is unreadable, not COCO, or names a category CHAIR does not know.
        MissingExtra: pycocotools is not installed.
    """
    coco, words = read_instances(instances, synonyms), {"family": family, "path": path}
    return objects_of(coco, captions, **words, images=images, synonyms=synonyms)


def read_instances(instances: Path | str, synonyms: Lines | None = None) -> Any:
    """A COCO instances file whose categories are CHAIR's, or those of object words of one's own.

    Raises:
        InvalidData: It is unreadable, not COCO, or names a category CHAIR does not know.
        MissingExtra: pycocotools is not installed.
    """
    coco = read_coco(instances, INSTANCES)
    names = {c["id"]: c["name"] for c in coco.dataset["categories"]}
    foreign = sorted(set(names.values()) - categories_of(synonyms))
    if foreign and synonyms is not None:
        raise InvalidData(
            f"{instances}: category {foreign[0]!r} begins no line of the object words given; add "
            "one for it."
        )
    if foreign:
        raise InvalidData(
            f"{instances}: category {foreign[0]!r} is not among CHAIR's 80 COCO categories; "
            "give an instances file with COCO category names, or --synonyms with your own."
        )
    return coco


def objects_of(
    coco: Any,
    captions: Path | str | None,
    *,
    family: str,
    path: str,
    images: Collection[int] | None = None,
    synonyms: Lines | None = None,
) -> dict[int, frozenset[str]]:
    """`ground_truth` of an instances file that `read_instances` has read."""
    names = {c["id"]: c["name"] for c in coco.dataset["categories"]}
    wanted = [i for i in coco.imgs if images is None or i in images]
    found = {i: {names[a["category_id"]] for a in coco.imgToAnns[i]} for i in wanted}
    if captions is not None:
        references = read_coco(captions, REFERENCES)
        words = reader_of(synonyms, family, path)
        for i in wanted:
            for annotation in references.imgToAnns[i]:
                found[i].update(words.read(annotation["caption"]).objects)
    return {i: frozenset(objects) for i, objects in found.items()}


def load_truth(
    path: Path | str = SHIPPED, synonyms: Lines | None = None
) -> dict[int, frozenset[str]]:
    """Reads finished object sets: lines of image id, tab, comma-separated categories.

    Without a path: the shipped sets of all 123,287 COCO 2014 images, wordnet family.

    Raises:
        InvalidData: A line has another form or an unknown category.
    """
    return dict(_shipped_truth() if Path(path) == SHIPPED else _read_truth(path, synonyms))


@cache  # the shipped sets take most of a second
def _shipped_truth() -> dict[int, frozenset[str]]:
    return _read_truth(SHIPPED)


def _read_truth(path: Path | str, synonyms: Lines | None = None) -> dict[int, frozenset[str]]:
    known = categories_of(synonyms)
    truth: dict[int, frozenset[str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        image, tab, names = line.partition("\t")
        objects = frozenset(names.split(",")) if names else frozenset()
        if not image.isdigit() or not tab or objects - known:
            raise InvalidData(
                f"{path}:{number}: expected an image id, a tab and COCO categories separated by "
                f"commas, found {line[:60]!r}."
            )
        truth[int(image)] = objects
    return truth


# Scoring -----------------------------------------------------------------------------------------


def trim(text: str, *, incomplete: str = "keep", max_words: int | None = None) -> str:
    """Cuts a caption before it is scored.

    Args:
        text: The caption.
        incomplete: ``drop`` removes what follows the last period, everything if there is none, as
            was done by hand for OPERA's 64-token numbers; ``keep`` leaves it.
        max_words: Keep this many white-space words; None keeps all.

    Raises:
        InvalidData: ``incomplete`` is neither.
    """
    if incomplete not in INCOMPLETE:
        raise InvalidData(f"incomplete is {incomplete!r}; it must be keep or drop.")
    if max_words is not None:
        text = " ".join(text.split()[:max_words])
    return text[: text.rfind(".") + 1] if incomplete == "drop" else text


def score(
    captions: Sequence[Caption] | Mapping[int, str],
    truth: Truth,
    *,
    family: str = "wordnet",
    gt_family: str | None = None,
    path: str = "auto",
    incomplete: str = "keep",
    max_words: int | None = None,
    synonyms: Lines | None = None,
) -> Score:
    """Scores captions against the objects of their pictures.

    Args:
        captions: The captions, or image id to caption; a second caption of an image gets the id
            ``image_id#1``.
        truth: Objects of every image, from `ground_truth` or `load_truth`.
        family: Word family for the captions, or a name of `MIXTURES`.
        gt_family: Word family behind ``truth``, recorded only; None repeats ``family``.
        path: Word path, see `halludecode.evals.benchmarks.chair.object_words.reader`.
        incomplete: See `trim`.
        max_words: See `trim`.
        synonyms: Object words in place of CHAIR's own, see `word_list.read_lines`.

    Returns:
        Metrics ``chair_s chair_i recall length`` (length = mean tokens a caption); pictures are the
        clusters. ``notes`` holds family, gt_family, path, precision and f1 over object types.

    Raises:
        InvalidData: Unknown family, no captions, or an image that ``truth`` lacks.
    """
    family, gt_family = families_of(family, gt_family)
    words = reader_of(synonyms, family, path)
    captions = _checked(captions, truth)
    outcomes: dict[Id, dict[str, Any]] = {}
    rows = []
    times: Counter[int] = Counter()
    for caption in captions:
        text = trim(caption.text, incomplete=incomplete, max_words=max_words)
        outcome = _outcome(text, words.read(text), truth[caption.image_id])
        repeat = times[caption.image_id]
        times[caption.image_id] += 1
        name: Id = f"{caption.image_id}#{repeat}" if repeat else caption.image_id
        outcomes[name] = {"image_id": caption.image_id} | outcome
        rows.append((str(caption.image_id), _counts(outcome, truth[caption.image_id])))
    clusters, columns = gather(rows, _COLUMNS)
    return Score(
        task="chair",
        n=len(captions),
        rule=family,
        outcomes=outcomes,
        clusters=clusters,
        columns=columns,
        formula=_formula,
        shares={"chair_s": {name: int(bool(o["hallucinated"])) for name, o in outcomes.items()}},
        notes=_notes(columns, words, gt_family)
        | {"incomplete": incomplete, "max_words": max_words}
        | _empty(outcomes)
        | ({} if synonyms is None else {"synonyms": list(synonyms)}),
    )


def _empty(outcomes: Mapping[Id, Mapping[str, Any]]) -> dict[str, Any]:
    """Captions of no word, and how many name no object: both have CHAIR's best score."""
    empty = [o["image_id"] for o in outcomes.values() if not o["caption"].strip()]
    return {"empty": empty, "without_objects": sum(not o["generated"] for o in outcomes.values())}


def empty_remarks(score: Score) -> list[str]:
    """What must be known of captions that say nothing, as sentences."""
    empty, bare = score.notes["empty"], score.notes["without_objects"]
    remarks = []
    if empty:
        first = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
        cut = " once cut" if score.notes["incomplete"] == "drop" else ""
        remarks.append(
            f"{len(empty)} of {score.n} captions are empty{cut} (image {first}); an empty caption "
            "has the best CHAIR."
        )
    if bare - len(empty) > 0.1 * score.n:
        own = score.notes.get("synonyms")
        kinds = len(categories_of(tuple(own) if own else None))
        remarks.append(
            f"{bare - len(empty)} of {score.n} captions name none of the {kinds} objects, which "
            "are looked for in English; such a caption has the best CHAIR."
        )
    marked = sum(bool(_MARKED.search(o["caption"])) for o in score.outcomes.values())
    if marked and score.notes["path"] == "tables" and score.rule == "wordnet":
        remarks.append(
            f"{marked} of {score.n} captions have words in `: there this package's tagger differs "
            "from NLTK's in about one caption of eight; install NLTK's data, or read them plain "
            "with --answers final."
        )
    return remarks


_MARKED = re.compile(r"`\w")


def _checked(captions: Sequence[Caption] | Mapping[int, str], truth: Truth) -> Sequence[Caption]:
    if isinstance(captions, Mapping):
        captions = [Caption(image, text) for image, text in captions.items()]
    if not captions:
        raise InvalidData("there are no captions to score; give a file with captions.")
    absent = [c for c in captions if c.image_id not in truth]
    if absent:
        where = f"{absent[0].where}: " if absent[0].where else ""
        raise InvalidData(
            f"{where}image_id {absent[0].image_id} is not in the annotations "
            f"({len(absent)} of {len(captions)} captions); "
            "give the annotations of the split the captions were made on."
        )
    return captions


def _outcome(text: str, reading: CaptionReading, present: frozenset[str]) -> dict[str, Any]:
    objects = reading.objects
    return {
        "caption": text,
        "words": reading.words,
        "generated": objects,
        "hallucinated": [name for name in objects if name not in present],
        "missed": sorted(present.difference(objects)),
        "mentions": [
            {
                "object": m.object,
                "word": m.word,
                "start": m.start,
                "end": m.end,
                "index": m.index,
                "hallucinated": m.object not in present,
            }
            for m in reading.mentions
        ],
    }


_COLUMNS = ("captions", "flagged", "mentions", "wrong", "types", "found", "present", "words")


def _counts(outcome: Mapping[str, Any], present: frozenset[str]) -> dict[str, float]:
    types = set(outcome["generated"])
    return {
        "captions": 1,
        "flagged": bool(outcome["hallucinated"]),
        "mentions": len(outcome["generated"]),
        "wrong": len(outcome["hallucinated"]),
        "types": len(types),
        "found": len(types & present),
        "present": len(present),
        "words": len(outcome["words"]),
    }


def _formula(s: Sums) -> dict[str, np.ndarray]:
    return {
        "chair_s": ratio(s["flagged"], s["captions"]),
        "chair_i": ratio(s["wrong"], s["mentions"]),
        "recall": ratio(s["found"], s["present"]),
        "length": ratio(s["words"], s["captions"]),
    }


def _notes(columns: Mapping[str, np.ndarray], words: Reader, gt_family: str) -> dict[str, Any]:
    found, types, present = (float(columns[k].sum()) for k in ("found", "types", "present"))
    precision, recall = found / types if types else 0.0, found / present if present else 0.0
    both = precision + recall
    return {
        "family": words.family,
        "gt_family": gt_family,
        "path": words.path,
        "precision": precision,
        "f1": 2 * precision * recall / both if both else 0.0,
    }
