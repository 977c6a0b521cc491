"""ZoomEye's search: a picture as a tree of views, explored by what the model says of each.

Shen et al., "ZoomEye: Enhancing Multimodal LLMs with Human-Like Zooming Capabilities through
Tree-Based Image Exploration", EMNLP 2025, arXiv 2411.16044. A search is a generator: it yields
`Look`s, is sent their confidences, and returns the view it settles on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import InvalidModel
from halludecode.core.prompt import Part, Picture, Prompt, Turn
from halludecode.views.crops import Box

T = TypeVar("T")
NARROW = 2  # times as long as wide: such a view is cut into four slices
DROPS = (0.1, 0.2)  # by how much the bar falls the second time, and whenever after that
AGAIN = 2  # views more that are visited before the bar is lowered once more
CUES = "Question: {}\nWhich objects must be looked at to answer it? Name only them."
WORDS = ("yes", "no")
EXAMPLES = (  # fewer than the authors give, in our words; they show the kind of answer wanted
    ("What colour is the cap of the man by the fountain?", "man with a cap by the fountain"),
    ("Is the bicycle left or right of the red door?", "bicycle and red door"),
    ("Which number stands on the bus?", "number on the bus"),
    ("Is the dog nearer to the bench or to the kiosk?", "dog, bench and kiosk"),
)
APPEARANCE = "What does the {} look like?"  # what is asked of one of several cues
ASKED = {
    "answer": "Question: {}\nIs what can be seen here enough to answer the question? "
    "Answer Yes or No.",
    "there": "Can a {} be seen in {where}? Answer Yes or No.",
    "further": "Judging by common sense and by {where}, could a {} be found by looking closer? "
    "Answer Yes or No, and say why.",
}
MARKED = (
    "This is the whole picture; a red rectangle marks one part of it.\n",
    "\nThis is that part, enlarged.\n",
)


@dataclass(frozen=True)
class Look:
    """A question about one view: enough to ``answer``? is it ``there``? ``further`` in?"""

    kind: Literal["answer", "there", "further"]
    about: str
    box: Box

    @property
    def name(self) -> str:
        """Unlike any other look's at the same picture."""
        return f"{self.kind} {self.box} {self.about}"


Search = Generator[Sequence[Look], Sequence[float], T]
Found = tuple[dict[str, ActivationRequest], list[Box | None]]  # see `found`


@dataclass(frozen=True)
class Limits:
    """When a search goes on, see `strategies.zoom` for what the authors take.

    Args:
        upper: Confidence at which a view answers the question, in [-1, 1].
        lower: The search gives up when the bar falls below it.
        drops: By how much the bar falls each time the search has been long; the last one stays.
        visits: Views visited, per level of the tree, before the bar falls first.
        depth: Most levels below the whole picture.
        bias: Share of "is it there" against "could it be further in" at the top; 1 at the bottom.
        smallest: A view no longer than this many pixels is not divided.
    """

    upper: float
    lower: float
    drops: tuple[float, ...]
    visits: int
    depth: int
    bias: float
    smallest: int


def parts(box: Box) -> list[Box]:
    """Four views that make up one, row by row; the last takes what does not divide."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    columns, rows = 2, 2
    if high >= NARROW * wide:
        columns, rows = 1, 4
    elif wide >= NARROW * high:
        columns, rows = 4, 1
    xs = [left + i * (wide // columns) for i in range(columns)] + [right]
    ys = [top + i * (high // rows) for i in range(rows)] + [bottom]
    return [(xs[i], ys[j], xs[i + 1], ys[j + 1]) for j in range(rows) for i in range(columns)]


def levels(size: tuple[int, int], limits: Limits) -> int:
    """How deep the tree of a picture goes below its root."""
    box, deep = (0, 0, *size), 0
    while deep < limits.depth and max(box[2] - box[0], box[3] - box[1]) >= limits.smallest:
        box, deep = parts(box)[-1], deep + 1  # the largest of the four
    return deep


def search(
    size: tuple[int, int],
    cue: str,
    question: str,
    limits: Limits,
    *,
    alone: bool = True,
    whole: bool = True,
) -> Search[Box | None]:
    """Visit views, likeliest first, until one answers the question.

    Args:
        size: Width and height of the picture in pixels.
        cue: What is looked for.
        question: What a view must answer.
        limits: When to go on.
        alone: The first answer ends it; otherwise it goes on to a smallest view, and the deepest
            of those that answer wins.
        whole: The whole picture may answer, too.

    Returns:
        The view; None where none answers.
    """
    deepest = levels(size, limits)
    bar, drops, most = limits.upper, list(limits.drops), limits.visits * deepest
    root: tuple[Box, int] = ((0, 0, *size), 0)
    queue, visited, found = [root], list[tuple[float, tuple[Box, int]]](), list[tuple[Box, int]]()
    liked, bottom = dict[Box, float](), False
    while queue:
        box, depth = queue.pop(0)
        sure = -1.0
        if whole or depth:
            (sure,) = yield [Look("answer", question, box)]
        visited.append((sure, (box, depth)))
        if (whole or depth) and sure >= bar:
            found.append((box, depth))
            if alone or bottom:
                break
        elif len(visited) >= most:
            bar, most = bar - drops[0], most + AGAIN
            drops = drops[1:] or drops
            found += [view for sure, view in visited if sure >= bar and view not in found]
            ranks = {view: sure for sure, view in visited}
            found = sorted(found, key=lambda view: -ranks[view])[:1]
            if found or bar < limits.lower:
                break
        if depth == deepest or max(box[2] - box[0], box[3] - box[1]) < limits.smallest:
            bottom = True
            if found and not alone:
                break
        else:
            queue += [(part, depth + 1) for part in parts(box)]
        new = [view for view in queue if view[0] not in liked]
        if new:
            kinds: tuple[Literal["there", "further"], ...] = ("there", "further")
            told = yield [Look(kind, cue, view) for view, _ in new for kind in kinds]
            for i, (view, level) in enumerate(new):
                share = (1 - limits.bias) * level**2 / deepest**2 + limits.bias
                liked[view] = told[2 * i] * share + told[2 * i + 1] * (1 - share)
        queue.sort(key=lambda view: -liked[view[0]])
    return max(found, key=lambda view: view[1])[0] if found else None


def search_all(
    size: tuple[int, int], cues: Sequence[str], question: str, limits: Limits, *, whole: bool
) -> Search[list[Box]]:
    """Views for all that is looked for, one search after another; [] where the picture does.

    Args:
        size: As for `search`.
        cues: What is looked for. One is looked for by the question, several by how each looks.
        question: The user's.
        limits: As for `search`.
        whole: With several cues the whole picture is asked about each first, and if it shows one
            there is no search; otherwise it is never taken for an answer.
    """
    if len(cues) == 1:
        view = yield from search(size, cues[0], question, limits)
        return [view] if view is not None else []
    asked = [APPEARANCE.format(cue) for cue in cues]
    if whole and cues:
        sure = yield [Look("answer", each, (0, 0, *size)) for each in asked]
        if max(sure) >= limits.upper:
            return []
    found = list[Box]()
    for cue, each in zip(cues, asked, strict=True):
        view = yield from search(size, cue, each, limits, alone=False, whole=whole)
        found += [view] if view is not None else []
    return found


def replay(search: Search[T], told: Mapping[str, float]) -> tuple[Sequence[Look], T | None]:
    """Run a search on what was told so far: what it asks next, or, if nothing, what it found."""
    try:
        looks = next(search)
        while all(look.name in told for look in looks):
            looks = search.send([told[look.name] for look in looks])
    except StopIteration as end:
        return (), end.value
    return looks, None


def joined(boxes: Sequence[Box], size: tuple[int, int], smallest: int, margin: float) -> Box | None:
    """The view that holds some, each with a margin; None for none, or where one is the picture.

    Args:
        boxes: Those.
        size: Of the picture.
        smallest: Least side of each, in pixels.
        margin: Factor on their sides.
    """
    if not boxes or (0, 0, *size) in boxes:
        return None
    wider = list[Box]()
    for left, top, right, bottom in boxes:
        wide, high = (int(max(n, smallest) * margin) for n in (right - left, bottom - top))
        x = max(0, int(left + (right - left) / 2) - wide // 2)
        y = max(0, int(top + (bottom - top) / 2) - high // 2)
        wider.append((x, y, min(x + wide, size[0]), min(y + high, size[1])))
    lefts, tops, rights, bottoms = zip(*wider, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def seen(picture: Picture, box: Box | None, *, whole: bool) -> tuple[Part, ...]:
    """How one view is shown: alone, or after the picture in which it is marked."""
    if box is None:
        return (picture,)
    view = Picture.of(picture.image.crop(box))
    return (MARKED[0], marked(picture, box), MARKED[1], view) if whole else (view,)


def marked(picture: Picture, box: Box) -> Picture:
    """The picture with a red rectangle round a view."""
    from PIL import ImageDraw

    image = picture.image.copy()
    thick = max(max(image.size) // 120, 1)
    left, top, right, bottom = box
    outline = (max(0, left - thick), max(0, top - thick), right + thick - 1, bottom + thick - 1)
    ImageDraw.Draw(image).rectangle(outline, outline="red", width=thick)
    return Picture.of(image)


def question(picture: Picture, look: Look, box: Box | None, *, whole: bool) -> Prompt:
    """What the model is asked by one look."""
    where = "the enlarged part" if whole and box is not None else "the picture"
    words = ASKED[look.kind].replace("{where}", where).replace("{}", look.about)
    return Prompt((Turn("user", (*seen(picture, box, whole=whole), words)),))


def said(name: str, kept: Activations) -> str:
    """The cues of the pass "cues"; of a look 2 p - 1, p the share of yes beside no, as text.

    Raises:
        InvalidModel: The vocabulary lacks one of these words.
    """
    if name == "cues":
        return kept.text
    logits = kept.word_logits
    if len(logits) < len(WORDS):
        raise InvalidModel("This model has no tokens for yes and no, by which views are judged.")
    yes, no = (logits[word] for word in WORDS)
    return repr(math.tanh((yes - no) / 2))


def found(
    prompt: Prompt,
    cues: Sequence[str],
    answers: Mapping[str, str],
    limits: Limits,
    margin: float,
    *,
    whole: bool,
) -> Found:
    """The searches of a prompt's pictures, as far as their looks were answered.

    Args:
        prompt: As it was asked.
        cues: What is looked for.
        answers: What `said` gave of looks that were taken, by place of the picture and name.
        limits: As for `search`.
        margin: As for `joined`.
        whole: Whether views are shown after the picture.

    Returns:
        Looks to take next, by name, and what was found in each picture: nothing until then.
    """
    requests, boxes = dict[str, ActivationRequest](), list[Box | None]()
    for place, picture in enumerate(prompt.pictures):
        size = picture.image.size
        own = f"{place} "
        told = {k.removeprefix(own): float(v) for k, v in answers.items() if k.startswith(own)}
        tree = search_all(size, cues, prompt.question, limits, whole=whole)
        looks, views = replay(tree, told)
        boxes.append(joined(views or (), size, limits.smallest, margin))
        for look in looks:
            view = joined([look.box], size, limits.smallest, margin)
            asked = question(picture, look, view, whole=whole)
            requests[own + look.name] = ActivationRequest(asked, words=WORDS)
    return requests, boxes


def cues_wanted(asked: str) -> Prompt:
    """Asks what must be looked at to answer a question, after examples, without a picture."""
    turns = [(Turn("user", (CUES.format(q),)), Turn("assistant", (a,))) for q, a in EXAMPLES]
    return Prompt((*(turn for pair in turns for turn in pair), Turn("user", (CUES.format(asked),))))


def cues_in(text: str) -> tuple[str, ...]:
    """What an answer names: its first line at "and" and commas."""
    line = next(iter(text.strip().splitlines()), "").removesuffix(".")
    return tuple(dict.fromkeys(cue for each in re.split(r" and |,", line) if (cue := each.strip())))


def shown(prompt: Prompt, boxes: Sequence[Box | None], *, whole: bool) -> Prompt:
    """The prompt with each picture shown with, or as, the view that was found in it."""
    places = iter(boxes)
    turns = [
        replace(
            turn,
            parts=tuple(
                new
                for part in turn.parts
                for new in (
                    seen(part, next(places), whole=whole) if isinstance(part, Picture) else (part,)
                )
            ),
        )
        for turn in prompt.turns
    ]
    return replace(prompt, turns=tuple(turns))
