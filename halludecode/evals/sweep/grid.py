"""Spec strings with braces: ``vcd(alpha={0.1..2:10}, beta={0.05,0.1})`` is twenty settings.

{a,b,c}    these values
{a..b:n}   n numbers from a to b, evenly apart, four digits
{a..b}     whole numbers from a to b
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from halludecode.core.errors import InvalidParameter
from halludecode.core.spec import format as canonical
from halludecode.core.spec import parse, split

MOST = 1000  # settings of one sweep: more is a slip of the pen
_BRACES = re.compile(r"(\w+)(\s*=\s*)\{([^{}]*)\}")
_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)\s*(?::\s*(\S+?)\s*)?")


@dataclass(frozen=True)
class Setting:
    """One point of a grid.

    Args:
        spec: As a user would write it.
        strategy: The same, canonical.
        values: What the braces stand for here, by parameter.
    """

    spec: str
    strategy: str
    values: dict[str, float | int | str]


def settings(specs: Sequence[str]) -> list[Setting]:
    """All settings of some specs in their order, equal ones once.

    Raises:
        UnknownStrategy, InvalidParameter: A spec, a range or a value does not fit.
    """
    found: dict[str, Setting] = {}
    for spec in specs:
        for setting in _of(spec):
            found.setdefault(setting.strategy, setting)
    if len(found) > MOST:
        raise InvalidParameter(f"{len(found)} settings; a sweep takes {MOST} at most.")
    return list(found.values())


def _of(spec: str) -> list[Setting]:
    parts = split(spec, "+", spec)
    pieces: list[str] = []
    names: list[str] = []
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        at = 0
        for match in _BRACES.finditer(part):
            pieces.append(("+" if number and not at else "") + part[at : match.start(3) - 1])
            owner = f"{part.partition('(')[0].strip()}." if len(parts) > 1 else ""
            names.append(owner + match[1])
            choices.append(_values(match[3], f"{match[1]}={{{match[3]}}}", spec))
            at = match.end()
        pieces.append(("+" if number and not at else "") + part[at:])
        choices.append([""])
        names.append("")
    count = 1
    for values in choices:
        count *= len(values)
    if count > MOST:
        raise InvalidParameter(f"{spec}: {count} settings; a sweep takes {MOST} at most.")
    made: list[Setting] = []
    for chosen in itertools.product(*choices):
        text = "".join(a + b for a, b in zip(pieces, chosen, strict=True))
        values = {name: _read(word) for name, word in zip(names, chosen, strict=True) if name}
        made.append(Setting(text, canonical(parse(text)), values))
    return made


def _values(text: str, shown: str, spec: str) -> list[str]:
    """The words that one pair of braces stands for."""
    ranged = _RANGE.fullmatch(text)
    if ranged is None:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise InvalidParameter(f"{spec}: {shown} has an empty value; write {{0.1,0.2}}.")
        return list(dict.fromkeys(words))
    first, last = (_number(word, shown, spec) for word in ranged.group(1, 2))
    if last < first:
        raise InvalidParameter(f"{spec}: {shown} goes down; the smaller end comes first.")
    if ranged[3] is None:
        if first != int(first) or last != int(last):
            raise InvalidParameter(
                f"{spec}: {shown} has no count; write {{{ranged[1]}..{ranged[2]}:10}} for ten "
                "numbers."
            )
        if last - first >= MOST:
            raise InvalidParameter(f"{spec}: {shown} is more than {MOST} values.")
        return [str(number) for number in range(int(first), int(last) + 1)]
    count = _number(ranged[3], shown, spec)
    if count != int(count) or not 2 <= count <= MOST:
        raise InvalidParameter(f"{spec}: {shown}: the count must be a whole number, 2 to {MOST}.")
    step = (last - first) / (count - 1)
    return list(dict.fromkeys(f"{first + i * step:.4g}" for i in range(int(count))))


def _number(word: str, shown: str, spec: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InvalidParameter(f"{spec}: {shown}: {word!r} is no number.")
    return value


def _read(word: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
