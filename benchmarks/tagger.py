"""What the shipped tagger of CHAIR's tables path is worth beside NLTK's, and how it is made.

    .venv/bin/python benchmarks/tagger.py                        # held-out texts of this repository
    .venv/bin/python benchmarks/tagger.py --texts FILE ...       # texts of your own
    .venv/bin/python benchmarks/tagger.py --rebuild OUT.json.gz --texts FILE ... --further FILE ...

Reads every text twice, by NLTK (its tokeniser, tagger and lemmas) and by this package, and counts
where they differ. By default the texts are those that had no part in the fit or its correction:
LLaVA-1.6's descriptions of AMBER's pictures, as they were published, plain and with the object
words in marks. With ``--rebuild`` the model is made anew from captions (for the shipped one those
that `halludecode/evals/benchmarks/chair/data/README.md` names, those of ``published`` under
``--further``: corrected on, not fitted to; eight minutes of a core, 2 GB), and compared with the
shipped file byte by byte. Needs NLTK with its data; writes benchmarks/tagger.md. Not part of any
test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import tagger, tagger_training
from halludecode.evals.data.records import read_records
from halludecode.evals.statistics.intervals import wilson_interval

HERE = Path(__file__).resolve().parent
HELD_OUT = "TracyZhao24-VCD/amber/*.jsonl.gz"  # of benchmarks/published: read by no fit
KEYS = ("caption", "text", "response", "answer", "gt_answer_details", "model_prediction")
MARKS = {"in ***": "***", "in `": "`", 'in "': '"'}
MARKED = 10  # every so many texts is also read with marks


class Count(NamedTuple):
    """Texts, those that name other objects, mentions by NLTK, and those read otherwise."""

    texts: int
    apart: int
    mentions: int
    wrong: int


def texts_of(path: Path) -> list[str]:
    """The texts of a file, under any of `KEYS`."""
    found = []
    for record in read_records(path):
        if isinstance(many := record.fields.get("captions"), list):
            found += [text for text in many if isinstance(text, str)]
        found += [t for k in KEYS if isinstance(t := record.fields.get(k), str)][:1]
    return [text for text in found if len(text.split()) > 2]  # a bare yes names nothing


def marked(text: str, mark: str, reader: words.Reader) -> str:
    """The text with its object words between marks."""
    for m in sorted(reader.read(text).mentions, key=lambda m: -m.start):
        text = text[: m.start] + mark + text[m.start : m.end] + mark + text[m.end :]
    return text


def compared(texts: Iterable[str], exact: words.Reader, ours: words.Reader) -> Count:
    """How often both readers differ."""
    total = Count(0, 0, 0, 0)
    for text in texts:
        sides = [{(m.start, m.object) for m in r.read(text).mentions} for r in (exact, ours)]
        wrong = len(sides[0] ^ sides[1])
        one = (1, int(wrong > 0), len(sides[0]), wrong)
        total = Count(*(a + b for a, b in zip(total, one, strict=True)))
    return total


def rows(paths: Sequence[Path], seen: Callable[[str], Any] = print) -> list[str]:
    """A line of the table for every file, all together, and the marks.

    Args:
        paths: Files of texts.
        seen: Is told each line.
    """
    exact, ours = words.reader("wordnet", "nltk"), words.reader("wordnet", "tables")
    every: list[str] = []
    lines: list[str] = []

    def add(name: str, texts: Sequence[str]) -> None:
        count = compared(texts, exact, ours)
        low, high = wilson_interval(count.apart, count.texts)
        share = f"{count.apart / max(1, count.texts):.2%} [{low:.2%}, {high:.2%}]"
        told = f"| {name} | {count.texts} | {count.apart} | {share} "
        lines.append(f"{told}| {count.wrong} of {count.mentions} |")
        seen(lines[-1])

    for path in paths:
        own = texts_of(path)
        every += own
        add(path.name.split(".json")[0], own)
    different = list(dict.fromkeys(every))
    add("all, each text once", different)
    for name, mark in MARKS.items():
        add(f"every {MARKED}th, {name}", [marked(t, mark, ours) for t in different[::MARKED]])
    return lines


def page(lines: Sequence[str]) -> str:
    """The whole page."""
    head = "| texts | n | name other objects | share [95 %] | mentions read otherwise |"
    return (
        "# The shipped tagger beside NLTK's, on texts that had no part in it\n\n"
        "Made by `python benchmarks/tagger.py`; do not edit.\n\n"
        "LLaVA-1.6's descriptions of AMBER's pictures (`published/TracyZhao24-VCD`), read by both "
        "word paths of CHAIR's wordnet family. Neither the fit nor its correction saw them. Marks "
        "stand round every object word: NLTK's tagger reads them as words, and the shipped one "
        "learned those of bold and italics (`**`, `*`) alone.\n\n"
        + "\n".join([head, "|---|---|---|---|---|", *lines])
        + "\n"
    )


def main() -> None:
    """Compare, or make the model anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+")
    parser.add_argument("--further", type=Path, nargs="+", default=[])
    parser.add_argument("--rebuild", type=Path, metavar="OUT.json.gz")
    args = parser.parse_args()
    if lack := words.missing_nltk():
        sys.exit(f"error: {lack}")
    if args.rebuild:
        if not args.texts:
            sys.exit("error: --rebuild needs the captions to learn from: --texts FILE ...")
        tagger_training.main(str(args.rebuild), *map(str, args.texts), further=args.further)
        same = args.rebuild.read_bytes() == tagger.MODEL.read_bytes()
        print(f"{args.rebuild} {'equals' if same else 'differs from'} the shipped {tagger.MODEL}")
        return
    lines = rows(args.texts or sorted((HERE / "published").glob(HELD_OUT)))
    if not args.texts:
        (HERE / "tagger.md").write_text(page(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
