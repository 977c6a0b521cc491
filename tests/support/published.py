"""Where the published data lie, for tests that read more than the vectors kept in tests/data."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair import tagger_training as tags_train
from halludecode.evals.benchmarks.chair.object_words import missing_nltk

REPO = Path(__file__).parents[2]
VECTORS = json.loads((REPO / "tests" / "data" / "eval_public.json").read_text(encoding="utf-8"))
PUBLIC = REPO.parent / "shared" / "data"
# Every published caption file, with its number of captions.
CAPTION_FILES = {
    **{
        f"chair/captions_opera/{model}_{decoding}.jsonl": 500
        for model in ("instructblip", "llava-1.5", "shikra")
        for decoding in ("beam5", "greedy", "opera")
    },
    **{
        f"chair/captions_pope_paper/Instruction{i}_{model}.jsonl.gz": 2000
        for i in (1, 2)
        for model in ("instructblip", "llava")
    },
    "chair/reference_output_llava-1.5-7b.jsonl.gz": 500,
    "chair/coco_val2014_80.jsonl": 401,
}


def public(name: str) -> Path:
    """A file or folder of the published data; skips the test where it is not on this machine."""
    path = PUBLIC / name
    if not path.exists():
        pytest.skip(f"published data {name} is not in ../shared/data")
    return path


def use_nltk_data() -> None:
    """Lets NLTK find its data in the published data; skips the test where it can find none."""
    nltk = pytest.importorskip("nltk", reason="NLTK is not installed")
    folder = str(PUBLIC / "nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    if lack := missing_nltk():
        pytest.skip(lack)


def caption_texts(name: str) -> list[str]:
    """The captions of one of `CAPTION_FILES`."""
    texts = tags_train.texts([public(name)])
    assert len(texts) == CAPTION_FILES[name]
    return texts


@cache
def truth(family: str) -> dict[int, frozenset[str]]:
    """Object sets of the pictures the published captions are about."""
    if family == "wordnet":
        return chair.load_truth()
    return chair.load_truth(public(f"chair/gt_{family}_trainval2014.tsv.gz"))


def published_captions(name: str) -> list[chair.Caption]:
    """Captions of one published file."""
    if name.startswith("Instruction"):
        path = public(f"chair/captions_pope_paper/{name}.jsonl.gz")
        rows = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        return [chair.Caption(row["image_id"], row["caption"]) for row in rows]
    return chair.load_captions(public(f"chair/captions_opera/{name}.jsonl"))


@cache
def published_score(name: str):
    """A published caption file under NLTK's words; tagging takes seconds, so once a session."""
    use_nltk_data()
    return chair.score(published_captions(name), truth("wordnet"), path="nltk")
