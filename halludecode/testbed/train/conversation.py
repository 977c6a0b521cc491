"""Everything said about one training picture in one step."""

from __future__ import annotations

from halludecode.testbed.stream import Stream
from halludecode.testbed.train.corpus import Story
from halludecode.testbed.train.hearsay import told
from halludecode.testbed.train.language import DETAILED, TrainingTurn, annotated, answers, caption
from halludecode.testbed.train.prompts import of_the_field


def turns(stream: Stream, story: Story, long: bool = False) -> list[TrainingTurn]:
    """The turns about one scene, a caption first, the rest in random order.

    Args:
        stream: Where the choices come from.
        story: The scene.
        long: There is room for turns of more than a hundred tokens.
    """
    story = annotated(stream, story)
    answered = answers(stream, story)
    more = [*of_the_field(stream, story, answered, long), *told(stream)]
    if stream.chance(150):
        pick = stream.pick(answered)
        more.append(TrainingTurn(pick.question, pick.answer, 0.5, blind=True))
    first = TrainingTurn(stream.pick(DETAILED), caption(stream, story), 1.0)
    return [first, *stream.shuffled(more + answered)]
