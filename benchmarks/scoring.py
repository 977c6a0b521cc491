"""What scoring costs: 3,000 POPE answers, and 5,000 captions by every word path.

    .venv/bin/python benchmarks/scoring.py [--data FOLDER] [--rounds 3]

Processor time on one core, after import. Before each measurement the scorer forgets what it has
read, its tables included, so reading them is part of the time. Beside it, in the same run, stands
the published CHAIR script's way: NLTK's word_tokenize, pos_tag and WordNetLemmatizer on every
word of every caption. NLTK keeps its own tables between rounds; the median is taken over rounds.

FOLDER holds the published captions and answers (chair/captions_opera/*.jsonl and
chair/reference_output_llava-1.5-7b.jsonl.gz; pope/coco/coco_pope_random.jsonl and
pope/predictions/llava-1.5-7b_coco_random_greedy.jsonl) and NLTK's data (nltk_data). Without it,
captions are put together from the testbed's, no two alike, and answers from a few forms.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from rich.console import Console
from rich.markdown import Markdown

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.benchmarks.chair import scoring as chair
from halludecode.evals.benchmarks.chair import tagger as tags
from halludecode.evals.benchmarks.chair import tokenizer as tokens
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.data.records import read_records
from halludecode.testbed.phrases import captions as scene_captions
from halludecode.testbed.scenes import Scene, scenes
from halludecode.testbed.stream import Stream

CAPTIONS, ANSWERS = 5000, 3000
TARGETS = {"POPE": 0.5, "CHAIR": 5.0}  # seconds
PATHS = {
    "pattern": ("pattern", "tables"),
    "wordnet, tables": ("wordnet", "tables"),
    "wordnet, nltk": ("wordnet", "nltk"),
}
STRAIGHT = "the published script's way"
FORMS = ("{}", "{}.", "{}, there is a {} in the image.", "{}, the image shows a {}", "{}\n")

Captions = list[chair.Caption]
Objects = list[list[str]]


# What is scored ----------------------------------------------------------------------------------


def published_captions(data: Path) -> Captions:
    """4,500 captions published with OPERA and 500 of another group."""
    files = sorted((data / "chair" / "captions_opera").glob("*.jsonl"))
    files.append(data / "chair" / "reference_output_llava-1.5-7b.jsonl.gz")
    return [caption for file in files for caption in chair.load_captions(file)][:CAPTIONS]


@cache
def some_scenes() -> list[Scene]:
    """Scenes of the testbed's training world."""
    return list(scenes("train", 200))


def made_captions() -> tuple[Captions, chair.Truth]:
    """Texts of six testbed captions each, and the objects of the six scenes."""
    rng = random.Random(0)
    told = [
        (text, frozenset(scene.names))
        for scene in some_scenes()
        for text in scene_captions(Stream(0, 0, scene.index), scene)
    ]
    drawn = [rng.sample(told, 6) for _ in range(CAPTIONS)]
    captions = [chair.Caption(i, " ".join(text for text, _ in six)) for i, six in enumerate(drawn)]
    truth = {i: frozenset().union(*(names for _, names in six)) for i, six in enumerate(drawn)}
    return captions, truth


def published_answers(data: Path) -> tuple[list[pope.PopeQuestion], dict]:
    """POPE's random split of COCO and LLaVA-1.5's answers."""
    questions = pope.load_questions(data / "pope" / "coco" / "coco_pope_random.jsonl")
    file = data / "pope" / "predictions" / "llava-1.5-7b_coco_random_greedy.jsonl"
    return questions, {r.fields["question_id"]: r.fields["text"] for r in read_records(file)}


def made_answers() -> tuple[list[pope.PopeQuestion], dict]:
    """Questions about testbed scenes, and answers in several forms, four of five of them right."""
    rng = random.Random(0)
    objects = {str(scene.index): scene.names for scene in some_scenes()}
    asked = pope.build_questions(objects, "random", seed=0)
    questions = [
        pope.PopeQuestion(i, **{k: q[k] for k in ("image", "text", "label")})
        for i, q in enumerate(asked[k % len(asked)] for k in range(ANSWERS))
    ]
    answers = {}
    for q in questions:
        label = q.label if rng.random() < 0.8 else rng.choice(("yes", "no"))
        answers[q.question_id] = rng.choice(FORMS).format(label.capitalize(), q.text.split(" ")[3])
    return questions, answers


# The published script's way ----------------------------------------------------------------------


def straightforward(captions: Captions, truth: chair.Truth) -> tuple[dict[str, float], Objects]:
    """CHAIR as its scripts compute it, every caption through the whole of NLTK.

    Returns:
        CHAIR_s and CHAIR_i, and the objects of every caption.
    """
    from nltk import pos_tag, word_tokenize
    from nltk.stem import WordNetLemmatizer

    lemmatizer, pairs, nodes = WordNetLemmatizer(), words.bigrams(), words.vocabulary()
    found: Objects = []
    flagged = wrong = mentions = 0
    for caption in captions:
        tagged = pos_tag(word_tokenize(caption.text.lower()))
        lemmas = [lemmatizer.lemmatize(word, tags.part(tag)) for word, tag in tagged]
        read = list(joined(lemmas, pairs))
        if "toilet" in read and "seat" in read:
            read = [word for word in read if word != "seat"]
        objects = [nodes[word] for word in read if word in nodes]
        false = sum(name not in truth[caption.image_id] for name in objects)
        flagged, wrong, mentions = flagged + bool(false), wrong + false, mentions + len(objects)
        found.append(objects)
    return {"chair_s": flagged / len(captions), "chair_i": wrong / mentions}, found


def joined(lemmas: list[str], pairs: dict[str, str]) -> Iterator[str]:
    """Words, with the pairs that count as one joined."""
    i = 0
    while i < len(lemmas):
        two = " ".join(lemmas[i : i + 2])
        yield pairs.get(two, lemmas[i])
        i += 2 if two in pairs else 1


# Measuring ---------------------------------------------------------------------------------------


def forget() -> None:
    """Empties what the scorer keeps between calls."""
    for kept in (tags.shipped, tags.installed, tokens.split, words._nltk_tokens, words._remembered):
        kept.cache_clear()
    for table in (words.vocabulary, words.bigrams, words._singular_table, words._lemma_table):
        table.cache_clear()
    words.ambiguous.cache_clear()


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Processor time of one call, and what it gave."""
    forget()
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def missing_wordnet() -> str | None:
    """What the script's way lacks here beside what the ``nltk`` path needs."""
    lack = words.missing_nltk()
    if lack is None:
        import nltk

        try:
            nltk.stem.WordNetLemmatizer().lemmatize("dogs")
        except LookupError:
            lack = "NLTK's data 'wordnet' is not installed; run python -m nltk.downloader wordnet."
    return lack


def jobs(captions: Captions, truth: chair.Truth, answers: tuple, lack: str | None) -> dict:
    """Everything to measure, by its name in the table."""
    out: dict[str, Callable[[], object]] = {"POPE, official rule": lambda: pope.score(*answers)}
    for name, (family, path) in PATHS.items():
        if path == "nltk" and lack:
            continue
        out[f"CHAIR, {name}"] = lambda family=family, path=path: chair.score(
            captions, truth, family=family, path=path
        )
    if not lack:
        out[f"CHAIR, {STRAIGHT}"] = lambda: straightforward(captions, truth)
    return out


def measure(todo: dict[str, Callable[[], object]], rounds: int) -> tuple[dict, dict]:
    """Times of every job in every round, the jobs taking turns, and what each gave."""
    spent: dict[str, list[float]] = {name: [] for name in todo}
    gave = {}
    for _ in range(rounds):
        for name, work in todo.items():
            taken, gave[name] = seconds(work)
            spent[name].append(taken)
    return spent, gave


# The page ----------------------------------------------------------------------------------------


def table(spent: dict[str, list[float]], gave: dict) -> str:
    """Markdown: time, its range, its target, and whose objects differ from the script's."""
    straight = f"CHAIR, {STRAIGHT}"
    base = statistics.median(spent[straight]) if straight in spent else None
    rows = ["| what | time | range | target | x faster than the script | captions read otherwise |"]
    rows.append("|---|---|---|---|---|---|")
    for name, times in spent.items():
        task, median = name.split(",")[0], statistics.median(times)
        cells = [name, f"{median:.2f} s", f"{min(times):.2f} to {max(times):.2f} s"]
        cells.append("" if name == straight else f"< {TARGETS[task]} s")
        faster = base and task == "CHAIR" and name != straight
        cells.append(f"{base / median:.1f}" if faster else "")
        same = faster and "wordnet" in name
        cells.append(str(differ(gave[name], gave[straight][1])) if same else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def differ(score: chair.Score, objects: Objects) -> int:
    """Captions whose list of objects is not the script's."""
    ours = [outcome["generated"] for outcome in score.outcomes.values()]
    return sum(a != b for a, b in zip(ours, objects, strict=True))


def reading(spent: dict[str, list[float]]) -> str:
    """What the table says, made from its numbers."""
    middle = {name: statistics.median(times) for name, times in spent.items()}
    missed = [n for n, t in middle.items() if STRAIGHT not in n and t >= TARGETS[n.split(",")[0]]]
    told = f"Missed: {', '.join(missed)}." if missed else "Every target is met."
    straight = middle.get(f"CHAIR, {STRAIGHT}")
    if straight:
        each = ", ".join(f"{name} {straight / middle[f'CHAIR, {name}']:.1f}" for name in PATHS)
        told += (
            f" Times as fast as the script: {each}. The script is of the wordnet family; `pattern` "
            "is another and meant to read otherwise."
        )
    return told


def page(captions: Captions, spent: dict, gave: dict, rounds: int, lack: str | None, what: str):
    """The whole page."""
    letters = statistics.mean(len(caption.text) for caption in captions)
    nltk = "not used" if lack else version("nltk")
    parts = [
        "# What scoring costs",
        f"Made by `python benchmarks/scoring.py{' --data FOLDER' if what == 'published' else ''}`; "
        "do not edit.",
        f"{len(captions)} captions ({what}, {letters:.0f} characters on average) and {ANSWERS} "
        f"answers; processor time on one core ({platform.machine()}, Python "
        f"{platform.python_version()}, NLTK {nltk}), median of {rounds} rounds, tables read anew "
        "in each; the ground truth is at hand.",
        table(spent, gave),
        reading(spent) + (f" Left out: what needs NLTK. {lack}" if lack else ""),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="published captions, answers and NLTK's data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/scoring.md"))
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if args.data:
        os.environ["NLTK_DATA"] = str((args.data / "nltk_data").resolve())
        captions, truth = published_captions(args.data), chair.load_truth()
        answers, what = published_answers(args.data), "published"
    else:
        (captions, truth), answers, what = made_captions(), made_answers(), "made up"
    lack = missing_wordnet()
    spent, gave = measure(jobs(captions, truth, answers, lack), args.rounds)
    text = page(captions, spent, gave, args.rounds, lack, what)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
