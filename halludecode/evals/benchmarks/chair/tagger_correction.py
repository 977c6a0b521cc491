"""Corrects weights of `chair.tagger` until captions are read as NLTK's tagger reads them.

Perceptron steps of a tenth, over the windows of captions that are read wrongly. What is read
rightly beforehand has to stay so; what is read wrongly and changes no object is let be, so that
weights move as little as they can. NLTK's tagger being a sum of such weights itself, the steps come
to an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.benchmarks.chair.tagger import Window, shape

Examples = dict[Window, str]
Weights = dict[str, dict[str, int]]  # feature -> tag -> tenths

ROUNDS = 60  # passes over the windows that were ever read wrongly before all are read again
_CHUNK = 20_000


def windows(tokens: Sequence[str], named: Mapping[int, str]) -> list[Window]:
    """The window of every token of a text, given all tags."""
    near = [*tags.BEFORE, *map(shape, tokens), *tags.AFTER]
    return [
        (near[i], near[i + 1], word, near[i + 3], near[i + 4], named[i - 1], named[i - 2])
        for i, word in enumerate(tokens)
    ]


class Asked(NamedTuple):
    """A caption that holds words that matter.

    Args:
        tokens: Of the caption.
        right: Places of those words, with NLTK's tags.
        rows: Numbers of the windows that decide these tags.
    """

    tokens: Sequence[str]
    right: Mapping[int, str]
    rows: np.ndarray


def settle(
    weights: Weights,
    known: Mapping[str, str],
    teacher: tags.Tagger,
    captions: Iterable[Sequence[str]],
    targets: frozenset[str],
    beside: Mapping[Window, str] | None = None,
) -> None:
    """Corrects weights until every word that matters is read in the captions as NLTK reads it.

    Args:
        weights: Changed in place.
        known: Words that have one tag everywhere.
        teacher: NLTK's tagger.
        captions: As tokens.
        targets: Words that matter.
        beside: Further windows with NLTK's tags: those that are read rightly stay so.
    """
    asked, examples = _asked(known, teacher, captions, targets)
    for window, name in (beside or {}).items():
        examples.setdefault(window, name)
    fit = Correction(weights, examples, teacher.names)
    right = fit.right()
    must = right.copy()
    while True:
        student = tags.Tagger(fit.weights(), known, teacher.names)
        doubted = [one for one in asked if not right[one.rows].all()]
        wrong = [one.rows for one in doubted if _misread(student, one)]
        if not wrong or must[np.concatenate(wrong)].all():
            break
        must[np.concatenate(wrong)] = True
        fit.run(np.flatnonzero(must))
        right = fit.right()
    weights.clear()
    weights.update(fit.weights())


def _asked(
    known: Mapping[str, str],
    teacher: tags.Tagger,
    captions: Iterable[Sequence[str]],
    targets: frozenset[str],
) -> tuple[list[Asked], Examples]:
    """The captions that matter, and all windows that decide them, in the order of their numbers."""
    numbers: dict[Window, int] = {}
    examples: Examples = {}
    asked = []
    for tokens in captions:
        places = [i for i, word in enumerate(tokens) if word in targets]
        if not places:
            continue
        right = teacher.tag(tokens)
        # Known words are never judged: their neighbours see the one tag that they have.
        named = right | {i: known[word] for i, word in enumerate(tokens) if word in known}
        near = windows(tokens, named)
        rows = []
        for i in _deciding(tokens, places, known):
            examples.setdefault(near[i], right[i])
            rows.append(numbers.setdefault(near[i], len(numbers)))
        asked.append(Asked(tokens, {i: right[i] for i in places}, np.array(rows)))
    return asked, examples


def _deciding(tokens: Sequence[str], places: Iterable[int], known: Mapping[str, str]) -> set[int]:
    """Places whose tags decide those of ``places``: back to two known words in a row."""
    found: set[int] = set()
    for place in places:
        for i in range(place, -1, -1):
            if tokens[i] not in known:
                found.add(i)
            if all(k < 0 or tokens[k] in known for k in (i - 1, i - 2)):
                break
    return found


def _misread(student: tags.Tagger, one: Asked) -> bool:
    found = student.tag(one.tokens, one.right)
    return any(tags.part(found[i]) != tags.part(name) for i, name in one.right.items())


class Correction:
    """Weights as a table, and windows as rows of places in it.

    Args:
        weights: To begin with; not changed.
        examples: Windows with their tags.
        names: All tags.
    """

    def __init__(self, weights: Weights, examples: Examples, names: Sequence[str]) -> None:
        self._names = sorted(names, reverse=True)  # as `Tagger` has them: the first of equals wins
        number = {name: i for i, name in enumerate(self._names)}
        self._places = {feature: i for i, feature in enumerate(weights)}
        places = self._places
        rows = [
            [places.setdefault(f, len(places)) for f in tags.features(window)]
            for window in examples
        ]
        self._rows = np.array(rows)
        self._right = np.array([number[name] for name in examples.values()])
        self._table = np.zeros((len(places), len(self._names)), np.float32)  # whole tenths
        for feature, row in weights.items():
            for name, tenths in row.items():
                self._table[places[feature], number[name]] = tenths

    def weights(self) -> Weights:
        """The weights that are not 0."""
        features = list(self._places)
        found: Weights = {}
        for i, j in np.argwhere(self._table).tolist():
            found.setdefault(features[i], {})[self._names[j]] = int(self._table[i, j])
        return found

    def right(self) -> np.ndarray:
        """Whether each window is read rightly, bool ``[windows]``."""
        found = np.ones(len(self._right), bool)
        found[self._wrong(np.arange(len(self._right)))] = False
        return found

    def run(self, rows: np.ndarray) -> None:
        """Corrects until the windows ``rows``, int64 ``[n]``, are read rightly."""
        hard = self._wrong(rows)
        while len(hard):
            for _ in range(ROUNDS):  # most windows are never read wrongly, and need no look
                if not sum(map(self._step, self._wrong(hard))):
                    break
            wrong = self._wrong(rows)
            if not len(wrong):
                return
            hard = np.union1d(hard, wrong)

    def _wrong(self, rows: np.ndarray) -> np.ndarray:
        import torch  # sums rows of a table many times faster than NumPy

        table = torch.from_numpy(self._table)
        found = [rows[:0]]
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            places = torch.from_numpy(self._rows[some])
            sums = torch.nn.functional.embedding_bag(places, table, mode="sum").numpy()
            found.append(some[sums.argmax(1) != self._right[some]])
        return np.concatenate(found)

    def _step(self, row: int) -> bool:
        """Moves the weights of a window a tenth towards its tag; whether that was needed."""
        places, right = self._rows[row], self._right[row]
        found = self._table[places].sum(0).argmax()
        if found == right:
            return False
        self._table[places, right] += 1
        self._table[places, found] -= 1
        return True
