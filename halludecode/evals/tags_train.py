"""Makes ``data/wordnet_tags.json.gz``: fits `halludecode.evals.tags` to NLTK's tagger.

    python -m halludecode.evals.tags_train OUT.json.gz CAPTIONS.jsonl[.gz] ...

Needs NLTK with its data. Every caption is tagged by NLTK; besides the words as they occur, each
word that matters is put into sentences of the captions in place of a word with the same ending, so
that words the captions lack are learnt too.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from halludecode.evals.records import read_records
from halludecode.evals.tags import POS, features, plain, totals
from halludecode.evals.words import DATA

Tagged = list[tuple[str, str]]  # token, Penn tag
Example = tuple[list[str], int]  # features, index into POS

ENDINGS = ("ing", "ed", "est", "er", "s", "")
COMMON = 60  # the most frequent words that matter get ten times the made-up sentences
WEIGHT = 6  # a real sentence counts as much as this many made-up ones


def ambiguous() -> set[str]:
    """Words whose lemma depends on the part of speech."""
    tables = json.loads((DATA / "wordnet_lemma.json").read_text(encoding="utf-8"))
    words = {word for table in tables.values() for word in table}
    return {w for w in words if len({tables[pos].get(w, w) for pos in POS}) > 1}


def usual_tags(captions: Iterable[Tagged], least: int = 3) -> dict[str, str]:
    """The most frequent tag of every word seen at least ``least`` times."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for caption in captions:
        for word, name in caption:
            counts[plain(word)][name] += 1
    return {w: c.most_common(1)[0][0] for w, c in counts.items() if c.total() >= least}


def examples(
    captions: Sequence[Tagged],
    targets: Collection[str],
    usual: Mapping[str, str],
    tagger: object,
    *,
    contexts: int = 250,
    seed: int = 0,
) -> list[Example]:
    """Training examples: the target words where they stand, and put into other sentences."""
    out: list[Example] = []
    seen: Counter[str] = Counter()
    places: defaultdict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for caption in captions:
        words = [word for word, _ in caption]
        for i, (word, name) in enumerate(caption):
            if word in targets:
                out += [_example(words, i, name, usual)] * WEIGHT
                seen[word] += 1
            if word.isalpha() and name[0] in "NVJR":
                places[_ending(word)].append((words[max(0, i - 8) : i + 6], min(i, 8)))
    rng = random.Random(seed)
    common = {word for word, _ in seen.most_common(COMMON)}
    for word in sorted(targets):
        for _ in range(contexts * (10 if word in common else 1)):
            window, i = rng.choice(places[_ending(word)])
            words = [*window[:i], word, *window[i + 1 :]]
            out.append(_example(words, i, tagger.tag(words)[i][1], usual))
    return out


def fit(data: list[Example], *, epochs: int = 6, seed: int = 0) -> dict[str, list[float]]:
    """Averaged perceptron over four parts of speech."""
    weights: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(POS))
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(POS))
    rng, step = random.Random(seed), 0
    for _ in range(epochs):
        rng.shuffle(data)
        for names, right in data:
            step += 1
            scores = totals(names, weights)
            guess = max(range(len(POS)), key=scores.__getitem__)
            if guess != right:
                for name in names:
                    for part, sign in ((right, 1), (guess, -1)):
                        weights[name][part] += sign
                        sums[name][part] += sign * step
    return {
        name: [w - s / step for w, s in zip(row, sums[name], strict=True)]
        for name, row in weights.items()
    }


def rounded(weights: Mapping[str, Sequence[float]], least: float = 0.5) -> dict[str, list[int]]:
    """Weights in tenths, without features that never reach ``least``."""
    kept = {name: row for name, row in weights.items() if max(map(abs, row)) >= least}
    return {name: [round(10 * w) for w in kept[name]] for name in sorted(kept)}


def _example(words: Sequence[str], i: int, name: str, usual: Mapping[str, str]) -> Example:
    pos = {"J": "a", "V": "v", "R": "r"}.get(name[:1], "n")
    return features(words, i, usual), POS.index(pos)


def _ending(word: str) -> str:
    return next(e for e in ENDINGS if (word.endswith(e) and len(word) > len(e) + 1) or not e)


def main(out: str, *paths: str) -> None:
    """Tags the captions of ``paths``, fits the model and writes it to ``out``."""
    from nltk import word_tokenize
    from nltk.tag import PerceptronTagger

    tagger = PerceptronTagger()
    texts = [
        record.fields.get("caption", record.fields.get("text"))
        for path in paths
        for record in read_records(path)
    ]
    captions = [tagger.tag(word_tokenize(text.lower())) for text in texts]
    usual = usual_tags(captions)
    weights = rounded(fit(examples(captions, ambiguous(), usual, tagger)))
    model = json.dumps({"usual": dict(sorted(usual.items())), "weights": weights})
    # A fixed time stamp, so that equal models are equal files.
    Path(out).write_bytes(gzip.compress(model.encode(), mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
