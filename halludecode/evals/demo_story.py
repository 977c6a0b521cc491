"""The demo told as a story: one picture under every strategy, then a line for each of them.

The picture is one of which greedy names something that is not there, and is asked about it. It
shows what strategies change and is no sample of how often they do; how often is what the lines say.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from halludecode.core import spec as hd_spec
from halludecode.core.needs import KINDS
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.engines.outputs import IDLE
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.build import BASELINE, Answers
from halludecode.evals.results.sections import MEAN
from halludecode.evals.results.verdict import NONE, STANDS, verdict

Groups = Mapping[tuple[str, str], Answers]


@dataclass(frozen=True)
class Scene:
    """One picture, described and asked about.

    Args:
        image: Name of the picture.
        data: Its source.
        objects: What it shows.
        invented: What greedy names and it does not show.
        sentences: By strategy, its description.
        question: Whether the invented object is there.
        answers: By strategy, what it answers.
    """

    image: str
    data: str
    objects: tuple[str, ...]
    invented: str
    sentences: Mapping[str, str]
    question: str
    answers: Mapping[str, str]

    def told(self) -> tuple[bool, int, str, str]:
        """Least where there is most to tell: greedy says yes and another does not; sentences."""
        split = self.answers[BASELINE] == "yes" and len(set(self.answers.values())) > 1
        return not split, -len(set(self.sentences.values())), self.data, self.image


def scene(groups: Groups) -> Scene | None:
    """The picture with most to tell; None where greedy invents nothing that is asked about.

    Args:
        groups: Answers to POPE and CHAIR.
    """
    both = (
        (group, groups["pope", group.data])
        for (task, data), group in groups.items()
        if task == "chair" and ("pope", data) in groups
    )
    return min((s for pair in both for s in _scenes(*pair)), key=Scene.told, default=None)


def _scenes(captions: Answers, questions: Answers) -> Iterator[Scene]:
    described = captions.lines.get(BASELINE, {}).get(None, {})
    asked: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    of_image = {line["image"]: line for line in described.values()}
    for who, by_split in questions.lines.items():
        for line in (line for lines in by_split.values() for line in lines.values()):
            if line["label"] == "no" and (about := of_image.get(line["image"])):
                named = captions.benchmark.mentions(line["prompt"], about, captions.families)
                for mention in named or ():
                    asked.setdefault((line["image"], mention.object), {})[who] = line
    for number, line in described.items():
        for name in line["parsed"]["hallucinated"]:
            answers = asked.get((line["image"], name), {})
            sentences = {
                who: by[None][number]["answer"]
                for who, by in captions.lines.items()
                if number in by.get(None, {})
            }
            if answers.keys() == sentences.keys() == captions.lines.keys():  # none failed
                yield Scene(
                    line["image"],
                    captions.data,
                    tuple(line["objects"]),
                    name,
                    sentences,
                    answers[BASELINE]["prompt"],
                    {who: one["answer"] for who, one in answers.items()},
                )


def deed(strategy: str, groups: Groups, results: Mapping[str, Any]) -> str:
    """What one strategy is, did to greedy's answers, left under its controls, and cost.

    Args:
        strategy: Its canonical form.
        groups: All answers.
        results: The content of ``results.json``.
    """
    counts, idea = _changes(strategy, groups), _idea(strategy)
    cost = _cost(strategy, results)
    acted = _acted(strategy, results)
    if not counts["changed"]:
        return f"{idea} {acted}It changed none of {counts['all']:,} answers. {cost}".strip()
    told = (
        f"It changed {counts['changed']:,} of {counts['all']:,} answers: {counts['mended']} of "
        f"yes and no mended, {counts['spoilt']} spoilt; of greedy's {counts['invented']} invented "
        f"objects {counts['gone']} are gone, {counts['new']} new ones came."
    )
    return f"{idea} {acted}{told} {_helps(strategy, results)} {cost}".strip()


def _acted(strategy: str, results: Mapping[str, Any]) -> str:
    """In how many answers it edited something inside the model; "" for what never edits there."""
    if kind(strategy) not in ("attention", "steering"):
        return ""
    entries = [e for e in results["runs"] if e["strategy"] == strategy and e["split"] != MEAN]
    told = (pair for entry in entries for pair in entry["warnings"].items())
    answers = sum(entry["n"] for entry in entries)
    idle = sum(count for words, count in told if IDLE in words)
    return f"It edited something in {answers - idle:,} of {answers:,} answers. "


def _changes(strategy: str, groups: Groups) -> Counter[str]:
    """How many answers differ from greedy's, and in what."""
    counts = Counter[str]()
    for group in groups.values():
        for split, lines in group.lines.get(strategy, {}).items():
            plain = group.lines.get(BASELINE, {}).get(split, {})
            for i in lines.keys() & plain.keys():
                own, other = lines[i], plain[i]
                counts["all"] += 1
                counts["changed"] += own["answer"] != other["answer"]
                if group.task == "chair":
                    ours, theirs = (set(x["parsed"]["hallucinated"]) for x in (own, other))
                    counts["invented"] += len(theirs)
                    counts["gone"] += len(theirs - ours)
                    counts["new"] += len(ours - theirs)
                else:
                    counts["mended"] += own["score"] > other["score"]
                    counts["spoilt"] += own["score"] < other["score"]
    return counts


def kind(strategy: str) -> str:
    """What a strategy does, of `core.needs.KINDS`, by the first of its parts that does anything."""
    info = replace(typical_model_info(), artifact={})
    parts = compile_plan(hd_spec.parse(strategy), info).parts
    return next((k for k in KINDS if any(k in part.kinds for part in parts)), KINDS[-1])


def _idea(strategy: str) -> str:
    """The first line of what is written about it."""
    parts = hd_spec.parse(strategy)
    if len(parts) > 1:
        return f"{' and '.join(part.name for part in parts)} together."
    own = type(parts[0])
    doc = inspect.getdoc(inspect.getmodule(own)) or inspect.getdoc(own) or own.name
    line = doc.splitlines()[0]
    words = line.partition(": ")[2] or line
    return f"{words[:1].upper()}{words[1:]}"


def _helps(strategy: str, results: Mapping[str, Any]) -> str:
    """Where it helps here, once its controls had their say."""
    said: dict[str, list[str]] = {}
    for gap in results["differences"]:
        if gap["strategy"] != strategy or gap["split"] == MEAN:
            continue
        benchmark = benchmark_named(gap["task"])
        for name in benchmark.headlines():
            controlled = benchmark.metric(name).control  # what stands must have had to
            if controlled and name in gap["metrics"] and (told := verdict(gap, name)) != NONE:
                metric, value = benchmark.metric(name), gap["metrics"][name]["value"]
                where = " ".join(filter(None, (gap["data"], gap["split"])))
                text = f"{metric.words} on {where} {value * metric.scale:+.1f}"
                said.setdefault(told, []).append(text)
    helps = said.pop(STANDS, [])
    others = [f"{', '.join(where)} ({told})" for told, where in said.items()]
    answer = f"yes: {', '.join(helps)}" if helps else "nowhere clearly"
    return f"Helps here: {'; '.join([answer, *others])}."


def _cost(strategy: str, results: Mapping[str, Any]) -> str:
    """Time as a multiple of greedy's; "" where nobody timed them."""
    seconds = {
        who: sum(
            e.get("seconds") or 0.0
            for e in results["runs"]
            if e["strategy"] == who and e["split"] != MEAN
        )
        for who in (strategy, BASELINE)
    }
    if not all(seconds.values()):
        return ""
    return f"Time here: {seconds[strategy] / seconds[BASELINE]:.1f} of greedy's."


def deeds(
    groups: Groups, results: Mapping[str, Any], labels: Mapping[str, str], model: str = ""
) -> Table:
    """A sentence or two for every strategy, those of one kind together.

    Args:
        groups: All answers.
        results: The content of ``results.json``.
        labels: Canonical strategy to what was asked for.
        model: Name of the model where it is not the story's.
    """
    asked = dict.fromkeys(name for g in groups.values() for name in g.lines if name != BASELINE)
    title = f"What each does on {model}" if model else "What each does here, by kind"
    table = _table(title, "kind", "strategy", "what it is, and did")
    for strategy in sorted(asked, key=lambda name: KINDS.index(kind(name))):
        told = deed(strategy, groups, results)
        table.add_row(kind(strategy), labels.get(strategy, strategy), told)
    return table


def opening(found: Scene, picture: Path, labels: Mapping[str, str]) -> list[Any]:
    """The picture, what every strategy says of it, and what it answers.

    Args:
        found: What is told of.
        picture: Where it lies.
        labels: Canonical strategy to what was asked for.
    """
    what = f"{', '.join(found.objects[:-1])} and {found.objects[-1]}" if found.objects[1:] else ""
    head = (
        f"{picture} shows {what or ''.join(found.objects)}, and no {found.invented}. Of all "
        "pictures it has most to tell; how often a strategy helps is told below."
    )
    table = _table("One picture", "strategy", "its description", found.question)
    for who, sentence in found.sentences.items():
        told = Text(sentence)
        told.highlight_words([found.invented], "bold red")
        table.add_row(labels.get(who, who), told, found.answers[who])
    return [head, table]


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    table.title = title
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
