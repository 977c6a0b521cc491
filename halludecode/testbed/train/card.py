"""The model card, written from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import Template
from typing import Any

from halludecode.testbed.assets import model_path
from halludecode.testbed.mme import SUBTASKS
from halludecode.testbed.train.judge import SPLITS
from halludecode.testbed.train.language import COMPLETION

_POPE = ("random", "popular", "adversarial")
_COUNTS = ("scenes", "collages", "judged", "vision", "words")
_BANDS = (
    ("patch accuracy, clean pictures", "vision", "patch accuracy", (90, 100)),
    ("POPE random, iid", "iid", "pope random", (90, 100)),
    ("POPE adversarial, iid", "iid", "pope adversarial", (78, 86)),
    ("CHAIR_i, iid", "iid", "chair_i", (9, 16)),
    ("CHAIR recall, iid", "iid", "recall", (65, 100)),
    ("MME position, iid", "iid", "mme position", (75, 100)),
    ("caption tokens decided at beta = 0.1", "habit", "decided", (45, 70)),
)


def write(recipe: Mapping[str, Any], by_seed: Mapping[int, Mapping[str, Any]], shipped: int) -> str:
    """Writes the card.

    Args:
        recipe: ``scenes``, ``collages``, ``judged``, ``vision``, ``words`` (counts), ``pictures``
            of a test split, ``time``, ``sinks`` (words) and ``curves`` (Markdown).
        by_seed: Seed to its figures: `judge.judge`'s, and ``vision`` and ``words`` of the stages.
        shipped: The seed whose weights ship.
    """
    template = Template((model_path().parent / "card.md").read_text(encoding="utf-8"))
    tables = [_bands(by_seed, shipped), _baseline(recipe, by_seed), _mme(by_seed), _errors(by_seed)]
    counts = {name: f"{recipe[name]:,}" for name in _COUNTS}
    return template.substitute(
        counts,
        completion=COMPLETION // 10,
        **_shape(),
        time=recipe["time"],
        seeds=", ".join(map(str, sorted(by_seed))),
        shipped=shipped,
        tables="\n".join(tables),
        weak=_weak(by_seed[shipped]),
        habit=_habit(by_seed),
        sinks=recipe["sinks"],
        curves=recipe["curves"],
    )


def _shape() -> dict[str, str]:
    """Size of the vocabulary and of the model, in words."""
    import torch
    from transformers import AutoConfig, LlavaForConditionalGeneration

    config: Any = AutoConfig.from_pretrained(model_path())
    with torch.device("meta"):
        count = sum(p.numel() for p in LlavaForConditionalGeneration(config).parameters())
    return {"vocabulary": str(config.text_config.vocab_size), "parameters": f"{count:,}"}


def _spread(by_seed: Mapping[int, Mapping[str, Any]], pick: Callable[[Any], float]) -> str:
    """``84.2`` of one seed, ``83.1 to 84.2`` of several, in percent."""
    values = [100 * pick(figures) for figures in by_seed.values()]
    low, high = min(values), max(values)
    return f"{low:.1f}" if len(values) == 1 else f"{low:.1f} to {high:.1f}"


def _figure(figures: Mapping[str, Any], where: str, name: str) -> float:
    return figures[where]["metrics"][name] if where in SPLITS else figures[where][name]


def _bands(by_seed: Mapping[int, Mapping[str, Any]], shipped: int) -> str:
    lines = ["## Bands", "", "| figure | goal | shipped | all seeds | |", "|---|---|---|---|---|"]
    for title, where, name, (low, high) in _BANDS:
        value = 100 * _figure(by_seed[shipped], where, name)
        goal = f"at least {low}" if high == 100 else f"{low} to {high}"
        verdict = "reached" if low <= value <= high else "missed"
        spread = _spread(by_seed, lambda f, w=where, n=name: _figure(f, w, n))
        lines.append(f"| {title} | {goal} | {value:.1f} | {spread} | {verdict} |")
    return "\n".join([*lines, ""])


def _baseline(recipe: Mapping[str, Any], by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    lines = [
        f"## Baseline, greedy, {recipe['pictures']} pictures a split, over seeds",
        "",
        'POPE accuracy in %, with "Please answer yes or no."; CHAIR wordnet. *new* are the scenes '
        "whose multiset of objects no training scene has.",
        "",
        "| split | POPE random | popular | adversarial | CHAIR_i | CHAIR_s | recall | words |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split in SPLITS:
        cells = [
            _spread(by_seed, lambda f, s=split, n=n: f[s]["metrics"][f"pope {n}"]) for n in _POPE
        ]
        for name in ("chair_i", "chair_s", "recall"):
            cells.append(_spread(by_seed, lambda f, s=split, n=name: f[s]["metrics"][n]))
        cells.append(_spread(by_seed, lambda f, s=split: f[s]["metrics"]["length"] / 100))
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
        new = [_spread(by_seed, lambda f, s=split, n=n: f[s]["unseen"][f"pope {n}"]) for n in _POPE]
        new.append(_spread(by_seed, lambda f, s=split: f[s]["unseen"]["chair_i"]))
        count = next(iter(by_seed.values()))[split]["unseen"]["pictures"]
        lines.append(f"| {split}, {count} new | " + " | ".join(new) + " | | | |")
    return "\n".join([*lines, ""])


def _mme(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    lines = [
        "Accuracy in % of MME-style questions (chance is 50):",
        "",
        "| split | " + " | ".join(SUBTASKS) + " |",
        "|---|" + "---|" * len(SUBTASKS),
    ]
    for split in SPLITS:
        cells = [
            _spread(by_seed, lambda f, s=split, n=n: f[s]["metrics"][f"mme {n}"]) for n in SUBTASKS
        ]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _errors(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    lines = [
        'False "yes" in % by kind of absent object (POPE random; number of questions of one seed):',
        "",
        "| split | usual partner of a present object | same theme | other |",
        "|---|---|---|---|",
    ]
    for split in SPLITS:
        cells = []
        for kind in ("partner", "same theme", "other"):
            rate = _spread(by_seed, lambda f, s=split, k=kind: f[s]["false_yes"].get(k, [0, 0])[0])
            count = next(iter(by_seed.values()))[split]["false_yes"].get(kind, [0, 0])[1]
            cells.append(f"{rate} ({count})")
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _habit(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    """What a row without the picture knows of the invented objects."""
    found = [figures["habit"] for figures in by_seed.values()]
    areas = ", ".join("-" if (x := each["auroc"]) is None else f"{x:.2f}" for each in found)
    counts = ", ".join(f"{each['invented']} of {each['mentions']}" for each in found)
    return f"{areas} (by seed; {counts} named objects were invented; 0.5 is chance)"


def _weak(figures: Mapping[str, Any]) -> str:
    """Which MME-style tasks are too near chance to score strategies on."""
    accuracy = {n: 100 * figures["broken"]["metrics"][f"mme {n}"] for n in SUBTASKS}
    weak: Sequence[str] = [f"`{n}` ({value:.0f} %)" for n, value in accuracy.items() if value < 65]
    if not weak:
        name = min(accuracy, key=lambda n: accuracy[n])
        return f"Its weakest MME-style questions of broken: `{name}` ({accuracy[name]:.0f} %)."
    return (
        f"Near chance on MME-style questions of broken: {', '.join(weak)}. Do not score "
        "strategies on them."
    )
