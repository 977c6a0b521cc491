"""The prompts of the field, so that no strategy fails for words that the model has never seen.

Descriptions before answers, disturbing roles, requested lengths, two pictures.

Who is told to be confused looks but briefly (`glanced`): the larger half of what is there, and all
that usually goes with it. That role's effect is planted, as the card says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from halludecode.strategies.code import REQUEST as DESCRIBE
from halludecode.strategies.icd import ROLES
from halludecode.testbed.phrases import NUMBERS
from halludecode.testbed.render import SIZE
from halludecode.testbed.stream import Stream
from halludecode.testbed.train.corpus import Story
from halludecode.testbed.train.language import (
    DETAILED,
    TrainingTurn,
    annotated,
    answers,
    caption,
    is_there,
)
from halludecode.views.description import REQUEST

BRIEF = "Describe the image briefly."
DISTURBING = ("confused", "general", "avoiding")  # of ICD's roles
_ORDINALS = ("first", "second")
_IMAGE = re.compile(r"\b(the|this) image\b")


def of_the_field(
    stream: Stream, story: Story, answered: Sequence[TrainingTurn], long: bool
) -> Iterator[TrainingTurn]:
    """Some turns about one picture in the words that strategies use.

    Args:
        stream: Where the choices come from.
        story: What is in the picture, as annotated.
        answered: The scene's questions.
        long: There is room for requests of a hundred words.
    """
    if stream.chance(300):
        yield _of_length(stream, story)
    if stream.chance(700 if long else 50):
        request = (REQUEST if long else DESCRIBE).replace(
            "{question}", stream.pick(answered).question
        )
        yield TrainingTurn(request, caption(stream, story), 1.0)
    if stream.chance(200):
        turn = stream.pick(answered)
        yield TrainingTurn(f"{caption(stream, story)}\n{turn.question}", turn.answer)
    if stream.chance(200):
        yield _in_a_role(stream, story)


def _of_length(stream: Stream, story: Story) -> TrainingTurn:
    sentences = caption(stream, story).split(". ")
    count = stream.between(1, min(3, len(sentences)))
    plural = "s" if count > 1 else ""
    question = f"Describe the image in {NUMBERS[count]} sentence{plural}."
    if count == 1 and stream.chance(500):
        question = BRIEF
    return TrainingTurn(question, ". ".join(sentences[:count]).removesuffix(".") + ".", 0.7)


def _in_a_role(stream: Stream, story: Story) -> TrainingTurn:
    role = stream.pick(tuple(ROLES))
    seen = glanced(stream, story) if role in DISTURBING else story
    if stream.chance(500):
        return TrainingTurn(f"{ROLES[role]} {stream.pick(DETAILED)}", caption(stream, seen), 1.0)
    turn = stream.pick(answers(stream, seen)[:4])  # those about existence come first
    return TrainingTurn(f"{ROLES[role]} {turn.question}", turn.answer)


def glanced(stream: Stream, story: Story) -> Story:
    """The larger half of the things, and what usually goes with them."""
    things = sorted(story.things, key=lambda thing: -thing.area)
    return annotated(stream, Story(story.theme, tuple(things[: len(things) // 2 + 1])), 1000)


def of_two(stream: Stream, first: Story, second: Story) -> list[TrainingTurn]:
    """Turns about two pictures, each naming the one it is about."""
    stories = [annotated(stream, story) for story in (first, second)]
    chosen = []
    for number, story in enumerate(stories):
        other = {thing.name for thing in stories[1 - number].things}
        only_there = sorted(other - {thing.name for thing in story.things})
        turns = answers(stream, story) + [
            TrainingTurn(is_there(stream, name), "no") for name in stream.shuffled(only_there)[:2]
        ]
        turns.append(TrainingTurn("Describe the image.", caption(stream, story), 1.0))
        chosen += [_about(turn, number) for turn in turns if _IMAGE.search(turn.question)]
    return stream.shuffled(chosen)


def _about(turn: TrainingTurn, number: int) -> TrainingTurn:
    question = _IMAGE.sub(f"the {_ORDINALS[number]} image", turn.question)
    return TrainingTurn(question, turn.answer, turn.weight)


def part(stream: Stream, image: np.ndarray) -> np.ndarray:
    """A square part of a picture, enlarged to its size: uint8 [120, 120, 3] both."""
    from PIL import Image

    side = stream.between(SIZE // 3, 3 * SIZE // 4)
    left, top = stream.below(SIZE - side + 1), stream.below(SIZE - side + 1)
    cut = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
