"""What is told without a picture: captions and questions about scenes as habit would have them.

Partners are all but always together here, more than in the pictures. So the decoder's own language
knows what goes with what, and a row that sees no picture speaks that prior, which is what contrast
methods assume of one.
"""

from __future__ import annotations

from collections.abc import Iterator

from halludecode.testbed.categories import COLOURS, TINTED
from halludecode.testbed.render import SIZE, Thing
from halludecode.testbed.scenes import Split, cast
from halludecode.testbed.stream import Stream
from halludecode.testbed.train.corpus import Story
from halludecode.testbed.train.language import DETAILED, TrainingTurn, answers, caption

HABIT = Split(-1, pair=980, stranger=30)  # no split of pictures: nothing is painted from it


def told(stream: Stream) -> Iterator[TrainingTurn]:
    """Captions, and questions behind a caption, none with a picture in sight."""
    for permille in (600, 250):
        if stream.chance(permille):
            words = caption(stream, imagined(stream))
            yield TrainingTurn(stream.pick(DETAILED), words, 0.7, blind=True)
    if stream.chance(400):
        story = imagined(stream)
        asked = stream.pick(answers(stream, story)[:4])  # those about existence come first
        question = f"{caption(stream, story)}\n{asked.question}"
        yield TrainingTurn(question, asked.answer, 1.0, blind=True)


def imagined(stream: Stream) -> Story:
    """A scene nobody painted, in which everything is where habit has it."""
    theme, names = cast(stream, HABIT)
    return Story(theme, tuple(_thing(stream, name) for name in stream.shuffled(names)))


def _thing(stream: Stream, name: str) -> Thing:
    tint = name in TINTED and stream.chance(650)
    area = stream.between(80, 900)
    place = stream.below(SIZE), stream.below(SIZE), 1, 1
    return Thing(name, stream.pick(tuple(COLOURS)) if tint else None, place, area, area)
