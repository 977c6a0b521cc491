"""Questions in the manner of MME's perception tasks: per picture one Yes, then one No.

Existence, count, colour, position and scene; a picture without a suitable object is left out of a
task.
"""

from __future__ import annotations

from halludecode.testbed.categories import COLOURS, NAMES, THEMES
from halludecode.testbed.phrases import NUMBERS, SUFFIX, a, plural
from halludecode.testbed.render import Thing
from halludecode.testbed.scenes import Scene
from halludecode.testbed.stream import Stream

SUBTASKS = ("existence", "count", "color", "position", "scene")
_APART = 30  # twice the least distance in pixels between two middles for a left-right question


def questions(stream: Stream, scene: Scene) -> dict[str, tuple[str, str]]:
    """Asks about one scene.

    Returns:
        Subtask to the question whose answer is Yes and the one whose answer is No.
    """
    groups: dict[str, list[Thing]] = {}
    for thing in scene.things:
        groups.setdefault(thing.name, []).append(thing)
    single = [group[0] for group in groups.values() if len(group) == 1]
    pairs = {
        "existence": _existence(stream, list(groups)),
        "count": _count(stream, groups),
        "color": _colour(stream, single),
        "position": _position(stream, single),
        "scene": _theme(stream, scene.theme),
    }
    return {
        subtask: (f"{pair[0]} {SUFFIX}", f"{pair[1]} {SUFFIX}")
        for subtask, pair in pairs.items()
        if pair is not None
    }


def _existence(stream: Stream, present: list[str]) -> tuple[str, str]:
    absent = [name for name in NAMES if name not in present]
    yes, no = stream.pick(present), stream.pick(absent)
    return f"Is there {a(yes)} in this image?", f"Is there {a(no)} in this image?"


def _count(stream: Stream, groups: dict[str, list[Thing]]) -> tuple[str, str]:
    name = stream.pick(list(groups))
    right = len(groups[name])
    wrong = stream.pick([n for n in (1, 2, 3) if n != right])
    yes, no = (
        f"Is there a total of {NUMBERS[n]} {plural(name) if n > 1 else name} in the image?"
        for n in (right, wrong)
    )
    return yes, no


def _colour(stream: Stream, single: list[Thing]) -> tuple[str, str] | None:
    tinted = [thing for thing in single if thing.colour]
    if not tinted:
        return None
    thing = stream.pick(tinted)
    wrong = stream.pick([colour for colour in COLOURS if colour != thing.colour])
    yes, no = (
        f"Is there {a(f'{colour} {thing.name}')} in the image?" for colour in (thing.colour, wrong)
    )
    return yes, no


def _position(stream: Stream, single: list[Thing]) -> tuple[str, str] | None:
    if len(single) < 2:
        return None
    first, second = stream.shuffled(single)[:2]
    across = first.middle[0] - second.middle[0]
    if abs(across) <= _APART:
        return None
    sides = ("left", "right") if across < 0 else ("right", "left")
    yes, no = (f"Is the {first.name} on the {side} side of the {second.name}?" for side in sides)
    return yes, no


def _theme(stream: Stream, theme: str) -> tuple[str, str]:
    other = stream.pick([name for name in THEMES if name != theme])
    return f"Does this image show {a(theme)} scene?", f"Does this image show {a(other)} scene?"
