"""Which pictures a report shows samples of, by rules that anyone can repeat.

Half are drawn blindly, in the order of a hash of their names; half are those on which the
strategies' answers differ most. Pictures that different tasks ask about are chosen apart, each kind
in proportion to its number, so that no task is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from halludecode.evals.results.build import BASELINE, Answers

KEPT = 80  # pictures per data source that a run folder keeps
LEAST = 4  # of every kind
DISPUTED = 8  # pictures per source in the gallery of captions


def pictures(groups: Sequence[Answers], count: int = KEPT) -> dict[str, bool]:
    """Names of the pictures shown of one data source, and whether each was drawn blindly.

    Args:
        groups: Answers to every task on the source.
        count: About how many; a smaller count takes a subset of what a larger one takes.

    Returns:
        Name to whether it was drawn (else chosen because answers differ), kinds interleaved.
    """
    tasks: dict[str, set[str]] = {}
    apart: dict[str, int] = {}
    for group in groups:
        for image, spread in _spreads(group).items():
            tasks.setdefault(image, set()).add(group.task)
            apart[image] = apart.get(image, 0) + spread
    kinds: dict[tuple[str, ...], list[str]] = {}
    for image in sorted(tasks, key=_shuffled):
        kinds.setdefault(tuple(sorted(tasks[image])), []).append(image)
    ranked: list[tuple[float, str, bool]] = []
    for names in kinds.values():
        share = max(LEAST, round(count * len(names) / len(tasks)))
        for rank, (name, drawn) in enumerate(_mixed(names, apart)[:share]):
            ranked.append((rank / share, name, drawn))
    return {name: drawn for _, name, drawn in sorted(ranked, key=lambda r: (r[0], _shuffled(r[1])))}


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _mixed(names: Sequence[str], apart: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Drawn and chosen by turns, every picture once."""
    by_spread = sorted((n for n in names if apart[n]), key=lambda n: (-apart[n], _shuffled(n)))
    mixed: dict[str, bool] = {}
    for i, drawn in enumerate(names):
        mixed.setdefault(drawn, True)
        if i < len(by_spread):
            mixed.setdefault(by_spread[i], False)
    return list(mixed.items())


def _spreads(group: Answers) -> dict[str, int]:
    """How far the strategies are apart on every picture."""
    counts_of: dict[tuple[str | None, Any], list[int]] = {}
    image_of: dict[tuple[str | None, Any], str] = {}
    for split, i, line in _lines(group):
        counts_of.setdefault((split, i), []).append(mistakes(line))
        image_of[split, i] = line["image"]
    spreads = dict.fromkeys(image_of.values(), 0)
    for key, counts in counts_of.items():
        spreads[image_of[key]] += max(counts) - min(counts)
    return spreads


def _lines(group: Answers) -> Iterable[tuple[str | None, Any, Mapping[str, Any]]]:
    for strategy in sorted(group.lines, key=lambda name: name != BASELINE):
        for split, lines in group.lines[strategy].items():
            for i, line in lines.items():
                yield split, i, line


def disputed(group: Answers, count: int = DISPUTED) -> list[Any]:
    """Ids on whose invented objects the strategies disagree most, in either direction; then by id.

    Args:
        group: Answers to a task of captions.
        count: At most how many.
    """
    counts_of: dict[Any, list[int]] = {}
    for _, i, line in _lines(group):
        counts_of.setdefault(i, []).append(mistakes(line))
    return sorted(counts_of, key=lambda i: (min(counts_of[i]) - max(counts_of[i]), str(i)))[:count]


def any_line(group: Answers, i: Any) -> Mapping[str, Any]:
    """Some strategy's line about a sample: question, picture and truth are the same in all."""
    return next(line for _, own, line in _lines(group) if own == i)


def mistakes(line: Mapping[str, Any]) -> int:
    """What is wrong in one answer: invented objects of a caption, 1 for a wrong yes or no."""
    parsed = line["parsed"]
    if isinstance(parsed, Mapping):
        return len(parsed.get("hallucinated", ()))
    return int(not line["score"])
