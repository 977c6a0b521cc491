"""Which object words of an answer rest on the picture: an explanation's tokens read as words.

A word's numbers are made of its tokens'. A word that names a COCO object (CHAIR's word families,
`halludecode.evals.benchmarks.chair.object_words`) counts as ungrounded where its grounding lies
below a threshold that `benchmarks/grounding.py` chose on the testbed's development pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.engines.api import Explanation
from halludecode.evals.benchmarks.chair.object_words import Mention, Reader, reader

SIGNALS = ("grounding", "entropy", "mass")
REDUCE = {"mean": fmean, "max": max}
SHIPPED = Path(__file__).parent / "data" / "grounding.json"
# Scripts without spaces are read character by character.
_RUN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])[\w'\u2019-])+|[^\w\s]+"
)


@dataclass(frozen=True)
class Word:
    """A stretch of an answer without a space, or the words of one object ("traffic light").

    Args:
        text: As written.
        start: Its first character in the answer.
        tokens: Places of the tokens it is made of.
        object: The COCO category it names, if any.
        values: `SIGNALS` -> its number.
        ungrounded: Whether it names an object and its grounding lies below the threshold.
    """

    text: str
    start: int
    tokens: tuple[int, ...]
    object: str | None
    values: Mapping[str, float]
    ungrounded: bool


@dataclass(frozen=True)
class Threshold:
    """Below which grounding an object word counts as ungrounded, and where that is known from.

    Args:
        below: Nats.
        reduce: `SIGNALS` -> how a word's number is made of its tokens': "mean" or "max".
        model_digest: The model it was chosen for.
        source: The whole file.
    """

    below: float
    reduce: Mapping[str, str]
    model_digest: str
    source: Mapping[str, Any]

    def described(self, model_digest: str) -> str:
        """How far to trust it for a model."""
        same_model = model_digest == self.model_digest
        return "calibrated on the testbed" + ("" if same_model else "; uncalibrated for this model")


def load_threshold(path: Path = SHIPPED) -> Threshold:
    """Reads what `benchmarks/grounding.py` wrote.

    Raises:
        InvalidData: The file is missing, or not of that form.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        reduce = {signal: read["reduce"][signal] for signal in SIGNALS}
        if not all(how in REDUCE for how in reduce.values()):
            raise ValueError
        return Threshold(float(read["grounding_below"]), reduce, str(read["model_digest"]), read)
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidData(
            f"{path} is no grounding threshold; make it with `python benchmarks/grounding.py`."
        ) from None


@cache
def _reader() -> Reader:
    return reader()


def words(explanation: Explanation, threshold: Threshold) -> list[Word]:
    """The words of an answer in order, with their numbers."""
    text = "".join(token.text for token in explanation.tokens)
    ends = list(accumulate(len(token.text) for token in explanation.tokens))
    spans = list(zip([0, *ends], ends, strict=False))
    measured: list[Word] = []
    for start, stop, object_ in _cut(text, _reader().read(text).mentions):
        inside = tuple(i for i, (a, b) in enumerate(spans) if a < stop and b > start)
        values = {
            signal: REDUCE[threshold.reduce[signal]](
                [getattr(explanation.tokens[i], signal) for i in inside]
            )
            for signal in SIGNALS
        }
        low = object_ is not None and values["grounding"] < threshold.below
        measured.append(Word(text[start:stop], start, inside, object_, values, low))
    return measured


def _cut(text: str, mentions: tuple[Mention, ...]) -> list[tuple[int, int, str | None]]:
    """Stretches of a text: those that name objects, and the runs between them."""
    stretches: list[tuple[int, int, str | None]] = []
    at = 0
    for mention in (*mentions, None):
        until = len(text) if mention is None else mention.start
        stretches += [(m.start(), m.end(), None) for m in _RUN.finditer(text, at, until)]
        if mention is not None:
            stretches.append((mention.start, mention.end, mention.object))
            at = mention.end
    return stretches


def numbers(explanation: Explanation, threshold: Threshold) -> dict[str, Any]:
    """An explanation as JSON: its tokens and object words, without maps."""
    return {
        "tokens": [
            {name: getattr(token, name) for name in ("text", "token_id", *SIGNALS)}
            for token in explanation.tokens
        ],
        "objects": [
            {"text": word.text, "object": word.object, **word.values, "ungrounded": word.ungrounded}
            for word in words(explanation, threshold)
            if word.object is not None
        ],
    }
