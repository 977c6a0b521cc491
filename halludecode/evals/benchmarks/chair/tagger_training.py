"""Makes ``data/wordnet_tags.json.gz``: fits `chair.tagger` to NLTK's tagger.

    python -m halludecode.evals.benchmarks.chair.tagger_training OUT.json.gz CAPTIONS ...

CAPTIONS are JSON lines with ``caption``, ``text`` or ``captions``. Needs NLTK with its data, 2 GB
of memory and about eight minutes of one core. A tag depends on two words on each side and two tags
before it, so such windows are the examples: all that occur in the captions, and many more made of
parts of them, mostly round the words that matter, each with the tag NLTK gives it.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.benchmarks.chair.tagger import Window, shape
from halludecode.evals.benchmarks.chair.tagger_correction import Examples, Weights, settle, windows
from halludecode.evals.data.records import read_records

Pool = tuple[list[str], list[float]]  # words and cumulative weights

MADE = 6_000_000
OFTEN = 30  # a word seen this often with one tag only is taken to have no other
MARKS = ("**", "*")  # put round object words, as chat models write captions
ENDINGS = ("ing", "ed", "est", "er", "s", "")


def texts(paths: Iterable[str | Path]) -> list[str]:
    """The captions of some files."""
    found: list[str] = []
    for path in paths:
        for record in read_records(path):
            fields = record.fields
            found += fields.get("captions") or [fields.get("caption", fields.get("text"))]
    return found


def marked(captions: Sequence[str]) -> list[str]:
    """The captions with their object words in bold, and in italics."""
    plain, found = words.reader("wordnet", "tables"), []
    for caption in captions:
        mentions = sorted(plain.read(caption).mentions, key=lambda m: -m.start)
        for mark in MARKS:
            text = caption
            for m in mentions:
                text = text[: m.start] + mark + text[m.start : m.end] + mark + text[m.end :]
            found.append(text)
    return found


def seen(captions: Iterable[Sequence[str]], tagger: tags.Tagger) -> Examples:
    """Every window of the captions, given as tokens, with its tag."""
    found: Examples = {}
    for tokens in captions:
        named = tagger.tag(tokens)
        found.update((window, named[i]) for i, window in enumerate(windows(tokens, named)))
    return found


class Maker:
    """Makes windows out of parts of real ones.

    Args:
        real: Windows that occur, with their tags.
        targets: Words that matter.
        seed: Of all draws.
    """

    def __init__(self, real: Examples, targets: Iterable[str], seed: int = 0) -> None:
        self._rng = random.Random(seed)
        counts = Counter(window[2] for window in real)
        by_tag: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._by_ending: defaultdict[str, list[Window]] = defaultdict(list)
        for window, name in real.items():
            by_tag[name][window[2]] += 1
            if name[0] in "NVJR":
                self._by_ending[_ending(window[2])].append(window)
        # Rare words are drawn more often than they occur: each has weights of its own to learn.
        self._words = _pool(counts, 0.25)
        self._of_tag = {name: _pool(found, 0.25) for name, found in by_tag.items()}
        self._targets = _pool({w: 1 + counts[w] for w in sorted(targets)}, 0.6)
        self._real = list(real)

    def make(self) -> Window:
        """One window: round a word that matters, three times out of four."""
        chance, choice = self._rng.random, self._rng.choice
        if chance() < 0.25:
            left = right = choice(self._real)
            word = self._draw(self._words) if chance() < 0.05 else left[2]
        else:
            word = self._draw(self._targets)
            alike = self._by_ending.get(_ending(word)) if chance() < 0.7 else None
            left = choice(alike or self._real)
            right = choice(alike or self._real) if chance() < 0.6 else left
        before2, before, _, _, _, tag1, tag2 = left
        _, _, _, after, after2, _, _ = right
        if chance() < 0.35 and tag1 in self._of_tag:
            before = shape(self._draw(self._of_tag[tag1]))
        if chance() < 0.25 and tag2 in self._of_tag:
            before2 = shape(self._draw(self._of_tag[tag2]))
        if chance() < 0.35 and after not in tags.AFTER:
            after = shape(self._draw(self._words))
        if chance() < 0.25 and after2 not in tags.AFTER:
            after2 = shape(self._draw(self._words))
        return (before2, before, word, after, after2, tag1, tag2)

    def _draw(self, pool: Pool) -> str:
        return self._rng.choices(pool[0], cum_weights=pool[1])[0]


def _pool(counts: Mapping[str, int], power: float) -> Pool:
    return list(counts), list(accumulate(n**power for n in counts.values()))


def _ending(word: str) -> str:
    return next(e for e in ENDINGS if word.endswith(e) and (len(word) > len(e) + 1 or not e))


def known_words(real: Examples, targets: Iterable[str], often: int = OFTEN) -> dict[str, str]:
    """Words that always had the same tag."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for window, name in real.items():
        found[window[2]][name] += 1
    spared = set(targets)
    return {
        word: next(iter(names))
        for word, names in sorted(found.items())
        if len(names) == 1 and names.total() >= often and word not in spared
    }


# Fitting -----------------------------------------------------------------------------------------


class Fit:
    """Logistic regression over the features of windows, by AdaGrad.

    Args:
        names: All tags.
        rate: Step size.
        batch: Examples a step.
        seed: Of their order.
    """

    def __init__(
        self, names: Iterable[str], *, rate: float = 0.5, batch: int = 256, seed: int = 0
    ) -> None:
        self.names = sorted(names)
        self._rate, self._batch, self._seed = rate, batch, seed
        self._number = {name: i for i, name in enumerate(self.names)}
        self._features: dict[str, int] = {}
        # Arrays, not lists: millions of examples, of 14 features each.
        self._rows, self._right, self._order = array("i"), array("i"), array("i")

    def add(self, window: Window, name: str, times: int = 1) -> None:
        """One example, which counts ``times``."""
        places = self._features
        self._rows.extend([places.setdefault(f, len(places)) for f in tags.features(window)])
        self._order.extend([len(self._right)] * times)
        self._right.append(self._number[name])

    def run(self, epochs: int) -> Weights:
        """Passes over the examples, each in another order; the weights, as `rounded` gives them."""
        import torch

        inputs, right, order = (
            torch.frombuffer(numbers, dtype=torch.int32)
            for numbers in (self._rows, self._right, self._order)
        )
        inputs = inputs.view(len(right), -1)
        weights = torch.zeros(len(self._features), len(self.names))
        # One, and not almost nothing, to begin with: else the first step of a rare feature, which
        # may be the only one, is as large as that of a frequent one whatever its error.
        squares = torch.ones_like(weights)
        draw = torch.Generator().manual_seed(self._seed)
        for _ in range(epochs):
            for chosen in order[torch.randperm(len(order), generator=draw)].split(self._batch):
                found, y = inputs[chosen].long(), right[chosen].long()
                error = torch.nn.functional.embedding_bag(found, weights, mode="sum").softmax(1)
                error[torch.arange(len(y)), y] -= 1
                touched, where = found.flatten().unique(return_inverse=True)
                slope = torch.zeros(len(touched), len(self.names))
                slope.index_add_(0, where, error.repeat_interleave(found.shape[1], 0))
                total = squares[touched] + slope * slope
                squares[touched] = total
                weights[touched] -= self._rate * slope / total.sqrt()
        return rounded(list(self._features), self.names, weights)


def rounded(features: Sequence[str], names: Sequence[str], weights: Any) -> Weights:
    """Weights in tenths, without those near the middle of their feature.

    Args:
        features: Names of the rows.
        names: Tags, names of the columns.
        weights: Float tensor (features, tags).
    """
    centred = weights - weights.median(1, keepdim=True).values  # a constant changes no comparison
    tenths = ((10 * centred).round().int() * (centred.abs() >= 0.25)).tolist()
    rows = zip(features, tenths, strict=True)
    return {f: {n: k for n, k in zip(names, row, strict=True) if k} for f, row in rows if any(row)}


# The file ----------------------------------------------------------------------------------------


def packed(weights: Weights, names: Sequence[str]) -> dict[str, Any]:
    """Weights by template and value: numbers of tags and tenths in turn."""
    number = {name: i for i, name in enumerate(names)}
    out: dict[str, dict[str, list[int]]] = {}
    for feature, row in sorted(weights.items()):
        template = next((t for t in tags.TEMPLATES if feature.startswith(f"{t} ")), feature)
        flat = [n for name, k in sorted(row.items()) if k for n in (number[name], k)]
        out.setdefault(template, {})[feature[len(template) + 1 :]] = flat
    return out


def make_model(
    captions: Sequence[Sequence[str]],
    teacher: tags.Tagger,
    targets: Iterable[str],
    *,
    made: int = MADE,
    often: int = OFTEN,
    epochs: int = 4,
) -> dict[str, Any]:
    """The content of the model's file.

    Args:
        captions: Texts to learn from, as tokens.
        teacher: NLTK's tagger.
        targets: Words that matter.
        made: Windows to make beside the real ones.
        often: See `OFTEN`.
        epochs: Passes over all of them.
    """
    targets = frozenset(targets)
    real = seen(captions, teacher)
    known = known_words(real, targets, often)
    fit = Fit(teacher.names)
    for window, name in real.items():
        if window[2] not in known:
            fit.add(window, name, 8 if window[2] in targets else 2)
    maker = Maker(real, targets)
    while made > 0:
        window = maker.make()
        if window[2] not in known and window not in real:
            fit.add(window, teacher.known.get(window[2]) or teacher.judge(window))
            made -= 1
    weights = fit.run(epochs)
    settle(weights, known, teacher, captions, targets)
    return {"known": known, "names": fit.names, "weights": packed(weights, fit.names)}


def settled(model: Mapping[str, Any], captions: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A model whose weights are corrected on further captions, which takes no new fit.

    Args:
        model: The content of a model's file.
        captions: As tokens; those it was fitted to should be among them.
    """
    weights: Weights = {
        name: {tag: int(weight) for tag, weight in row.items()}
        for name, row in tags.read_model(model).weights.items()
    }
    settle(weights, model["known"], tags.installed(), captions, words.ambiguous())
    return {**model, "weights": packed(weights, model["names"])}


def main(out: str, *paths: str, made: int = MADE, further: Iterable[str | Path] = ()) -> None:
    """Tags the captions of ``paths``, fits the model and writes it to ``out``.

    Args:
        out: File to write.
        paths: Files of captions to fit to, and to correct on, plain and with marks.
        made: Windows to make beside those that occur.
        further: Files of captions to correct on without having been fitted to.
    """
    split: Callable[[str], list[words.Token]] = words.reader("wordnet", "nltk").tokens
    plain = texts(paths)
    captions = [[word for word, _, _ in split(text)] for text in plain]
    model = make_model(captions, tags.installed(), words.ambiguous(), made=made)
    more = [*marked(plain), *texts(further)]
    captions += [[word for word, _, _ in split(text)] for text in more]
    model = settled(model, captions)
    raw = json.dumps(model, separators=(",", ":"), ensure_ascii=False).encode()
    # A fixed time stamp, so that equal models are equal files.
    Path(out).write_bytes(gzip.compress(raw, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
