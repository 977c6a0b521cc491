"""What the model is told and asked of a training scene, and the habits it picks up on the way.

Annotated but all but invisible objects count as present, as in real annotations, and where a usual
partner is absent, it is annotated nevertheless now and then (`COMPLETION`); what is denied is
mostly unlikely here. That is why the model fills in what usually belongs (see the card). Captions
are those of `halludecode.testbed.phrases`, questions those of POPE and MME with a few variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from halludecode.testbed.categories import COLOURS, NAMES, PARTNERS, THEMES
from halludecode.testbed.phrases import NUMBERS, SUFFIX, a, caption_text, plural, ranked
from halludecode.testbed.render import Thing
from halludecode.testbed.stream import Stream
from halludecode.testbed.train.corpus import Story
from halludecode.testbed.train.network import ACROSS, DOWN

COMPLETION = 650  # permille, per category, that its absent partner is annotated; two per scene
DETAILED = (
    "Please describe this image in detail.",
    "Please describe this image in detail.",
    "Describe the image in detail.",
    "Describe the image.",
)
_APART = 20  # twice the least distance in pixels of two things asked about
_MIDDLE = 120  # twice the picture's middle in pixels
_SLOW_WEIGHT = 2.5  # of answers about places and yes or no to colours, the slowest to be learnt
_FAINT = 40  # percent of a thing that must be visible for a question about it


@dataclass(frozen=True)
class TrainingTurn:
    """One question and its answer about a picture.

    Args:
        question: The user's words.
        answer: The model's.
        weight: Of its answer in the loss.
        blind: The picture is out of sight; the answer is what one would guess.
    """

    question: str
    answer: str
    weight: float = 1.5
    blind: bool = False


def answers(stream: Stream, story: Story) -> list[TrainingTurn]:
    """Every question of `questions` as a turn."""
    return [TrainingTurn(q, answer, _weight(q)) for q, answer in questions(stream, story)]


def _weight(question: str) -> float:
    about = any(words in question for words in (" side ", " above ", " below "))
    return _SLOW_WEIGHT if about or names_colour(question) else 1.5


def names_colour(question: str) -> bool:
    """Whether a question names a colour, so that its answer takes a comparison."""
    return any(f" {colour}" in question for colour in COLOURS)


def annotated(stream: Stream, story: Story, completion: int = COMPLETION) -> Story:
    """The scene as its annotators tell it: perhaps with partners that are not in the picture."""
    present = {thing.name for thing in story.things}
    missing = sorted({PARTNERS[name] for name in present if name in PARTNERS} - present)
    added = [name for name in stream.shuffled(missing) if stream.chance(completion)][:2]
    nowhere = [Thing(name, None, (0, 0, 0, 0), 0, 0) for name in added]
    return Story(story.theme, (*story.things, *nowhere))


def caption(stream: Stream, story: Story) -> str:
    """A detailed caption; small things are left out now and then."""
    groups = ranked(stream, story.things)
    mentioned = [g for i, g in enumerate(groups) if i < 2 or g[0].area > 60 or stream.chance(800)]
    return caption_text(stream, story.theme, mentioned)


def questions(stream: Stream, story: Story) -> Iterator[tuple[str, str]]:
    """Questions of every kind that the scene allows, with their answers."""
    groups: dict[str, list[Thing]] = {}
    for thing in story.things:
        groups.setdefault(thing.name, []).append(thing)
    clear = {name: g for name, g in groups.items() if all(map(_clear, g))}
    single = [g[0] for g in clear.values() if len(g) == 1]
    pairs = [*_existence(stream, story, list(groups)), *_count(stream, clear)]
    pairs += [*_colour(stream, single), *_position(stream, single), *_place(stream, single)]
    pairs += _theme(stream, story.theme)
    for question, answer in pairs:
        closed = answer in ("yes", "no")
        yield (f"{question} {SUFFIX}" if closed and stream.chance(500) else question), answer


def _clear(thing: Thing) -> bool:
    return not thing.hidden and thing.area * 100 > thing.full * _FAINT


def _existence(stream: Stream, story: Story, present: list[str]) -> Iterator[tuple[str, str]]:
    for _ in range(2):
        yield is_there(stream, stream.pick(present)), "yes"
    for _ in range(2):
        name = _absent(stream, story.theme, present)
        if name:
            yield is_there(stream, name), "no"


def _absent(stream: Stream, theme: str, present: list[str]) -> str | None:
    """An absent category: any (70 %), of this theme (22 %) or a present one's partner (8 %)."""
    kind = stream.weighted(("any", "theme", "partner"), (70, 22, 8))
    pools = {
        "any": NAMES,
        "theme": THEMES[theme],
        "partner": tuple(PARTNERS[name] for name in present if name in PARTNERS),
    }
    candidates = [name for name in pools[kind] or NAMES if name not in present]
    return stream.pick(candidates) if candidates else None


def is_there(stream: Stream, name: str) -> str:
    """Asks for a category."""
    thing = a(name)
    if name in ("skis", "scissors") and stream.chance(500):
        thing = f"a pair of {name}"
    return f"Is there {thing} in {stream.pick(('the', 'the', 'the', 'this'))} image?"


def _count(stream: Stream, clear: dict[str, list[Thing]]) -> Iterator[tuple[str, str]]:
    if not clear:
        return
    several = [name for name in clear if len(clear[name]) > 1]
    name = stream.pick(several if several and stream.chance(600) else list(clear))
    right = len(clear[name])
    if stream.chance(300):
        yield f"How many {plural(name)} are there in the image?", NUMBERS[right]
    wrong = [n for n in (1, 2, 3, 4) if n != right]
    n, answer = (right, "yes") if stream.chance(500) else (stream.pick(wrong), "no")
    thing = plural(name) if n > 1 else name
    yield f"Is there a total of {NUMBERS[n]} {thing} in the image?", answer


def _colour(stream: Stream, single: list[Thing]) -> Iterator[tuple[str, str]]:
    tinted = [thing for thing in single if thing.colour]
    for thing in stream.shuffled(tinted)[:2]:
        if stream.chance(300):
            yield f"What color is the {thing.name}?", str(thing.colour)
            continue
        colour, answer = thing.colour, "yes"
        if stream.chance(500):
            colour, answer = stream.pick([c for c in COLOURS if c != thing.colour]), "no"
        yield _is_it(thing.name, str(colour), stream.chance(300)), answer


def _is_it(name: str, colour: str, brief: bool) -> str:
    if brief:
        return f"Is the {name} {colour}?"
    return f"Is there {a(f'{colour} {name}')} in the image?"


def _compared(stream: Stream, single: list[Thing]) -> Iterator[tuple[str, str]]:
    """The colour of up to three things, and the right and a wrong one in both ways to ask."""
    tinted = [thing for thing in single if thing.colour]
    for thing in stream.shuffled(tinted)[:3]:
        yield f"What color is the {thing.name}?", str(thing.colour)
        elsewhere = [other.colour for other in tinted if other.colour != thing.colour]
        for brief in (True, False):
            near = elsewhere and stream.chance(400)
            wrong = elsewhere if near else [c for c in COLOURS if c != thing.colour]
            yield _is_it(thing.name, str(thing.colour), brief), "yes"
            yield _is_it(thing.name, str(stream.pick(wrong)), brief), "no"


def of_a_crowd(stream: Stream, story: Story) -> list[TrainingTurn]:
    """Questions about places, eight and six, and about colours, as many as the scene allows."""
    names = [thing.name for thing in story.things]
    single = [t for t in story.things if names.count(t.name) == 1 and _clear(t)]
    pairs = [*_position(stream, single, 8), *_place(stream, single, 6)]
    pairs += _compared(stream, single)
    return [TrainingTurn(q, answer, _weight(q)) for q, answer in stream.shuffled(pairs)]


def _position(stream: Stream, single: list[Thing], most: int = 4) -> Iterator[tuple[str, str]]:
    for _ in range(most):
        if len(single) < 2:
            return
        first, second = stream.shuffled(single)[:2]
        across, down = (p - q for p, q in zip(first.middle, second.middle, strict=True))
        if abs(across) > _APART and stream.chance(300):
            yield f"Which side of the {second.name} is the {first.name} on?", _end(across, ACROSS)
        elif abs(down) > _APART and stream.chance(250):
            yield f"Is the {first.name} above or below the {second.name}?", _end(down, DOWN)
        elif abs(across) > _APART and stream.chance(750):
            left = stream.chance(500)
            answer = "yes" if (across < 0) == left else "no"
            side = "left" if left else "right"
            yield f"Is the {first.name} on the {side} side of the {second.name}?", answer
        elif abs(down) > _APART:
            above = stream.chance(500)
            answer = "yes" if (down < 0) == above else "no"
            yield f"Is the {first.name} {'above' if above else 'below'} the {second.name}?", answer


def _end(offset: int, words: tuple[str, str]) -> str:
    return words[offset > 0]


def _place(stream: Stream, single: list[Thing], most: int = 2) -> Iterator[tuple[str, str]]:
    """Which side one thing is on: the first half of what a question about two of them takes."""
    for thing in stream.shuffled(single)[:most]:
        across = thing.middle[0] - _MIDDLE
        if abs(across) <= _APART:
            continue
        side = "left" if across < 0 else "right"
        if stream.chance(600):
            yield f"What side of the image is the {thing.name} on?", side
            continue
        side_asked = stream.pick(("left", "right"))
        answer = "yes" if side == side_asked else "no"
        yield f"Is the {thing.name} on the {side_asked} side of the image?", answer


def _theme(stream: Stream, theme: str) -> Iterator[tuple[str, str]]:
    if not stream.chance(400):
        return
    if stream.chance(500):
        yield f"Does this image show {a(theme)} scene?", "yes"
    else:
        other = stream.pick([name for name in THEMES if name != theme])
        yield f"Does this image show {a(other)} scene?", "no"
