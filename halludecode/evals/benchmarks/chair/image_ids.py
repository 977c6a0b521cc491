"""Lists of COCO image ids, so that captions of different projects are of the same pictures.

Every project draws its own 500 of val2014, most by a seed that depends on the machine; numbers of
two draws differ by more than methods do. ``chair500`` is the draw that OPERA published captions
of, also taken by DeCo.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from halludecode.core.errors import InvalidData
from halludecode.evals.benchmarks.answer_file import Given
from halludecode.evals.benchmarks.chair.object_words import DATA
from halludecode.evals.data.records import read_text

LISTS = {"chair500": DATA / "coco2014_chair500.txt"}


def load_ids(name: Path | str) -> tuple[int, ...]:
    """Reads a list of image ids.

    Args:
        name: A name of `LISTS`, or a text file with one id a line; ``#`` begins a comment.

    Raises:
        InvalidData: No such list, no id in it, or a line that is no id or repeats one.
    """
    path = LISTS.get(str(name), Path(name))
    if not path.exists():
        raise InvalidData(
            f"image ids {str(name)!r}: no such file, and the shipped lists are {', '.join(LISTS)}."
        )
    lines: dict[int, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not (word.isascii() and word.isdigit()):
            raise InvalidData(f"{path}:{number}: {word[:60]!r} is no image id; give one id a line.")
        first = lines.setdefault(int(word), number)
        if first != number:
            raise InvalidData(f"{path}:{number}: image id {word} is already on line {first}.")
    if not lines:
        raise InvalidData(f"{path} holds no image ids; give one id a line.")
    return tuple(lines)


def check_ids(wanted: Iterable[int], found: Iterable[int], where: str) -> None:
    """Checks that nothing of a list is missing.

    Args:
        wanted: Ids of the list.
        found: Ids there are.
        where: What was looked through, for the message.

    Raises:
        InvalidData: Some are missing; the first is named.
    """
    wanted, known = list(wanted), set(found)
    missing = [i for i in wanted if i not in known]
    if missing:
        raise InvalidData(
            f"{where}: {len(missing)} of the {len(wanted)} image ids asked for are missing, "
            f"{missing[0]} first; give the pictures and annotations the list is of (COCO val2014 "
            "for the shipped one), or another list."
        )


def check_among(wanted: Collection[int], given: Given, ids: str) -> None:
    """Every answer is about one of these pictures; ``ids`` is what names them.

    Raises:
        InvalidData: One is not.
    """
    strangers = [i for i in given.answers if i not in set(wanted)]
    if strangers:
        raise InvalidData(
            f"{given.where[strangers[0]]}: image_id {strangers[0]} is no image of {ids} "
            f"({len(strangers)} such answers); check that both are of the same set."
        )
