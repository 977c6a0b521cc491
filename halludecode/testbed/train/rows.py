"""Turns about a picture laid out as one row of token ids, and rows as a batch.

A turn sees the prefix and itself; a blind turn sees the prefix's words alone. Turns lie in blocks
of one size, so that attention is paid to the prefix and to one's own block and to nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.testbed.categories import COLOURS
from halludecode.testbed.train.corpus import CELLS
from halludecode.testbed.train.gaze import Names
from halludecode.testbed.train.language import TrainingTurn, names_colour
from halludecode.testbed.train.network import ACROSS, DOWN
from halludecode.testbed.train.schemes import opened, places

# tokens of a block and blocks of a row behind its pictures
SHORT, LONG, MANY = (84, 2), (188, 1), (84, 3)
TAIL = 2  # tokens of "ASSISTANT:", which a picture does not see under MMA
IGNORE = -100
_PADDING = -9999


@dataclass
class TrainingRow:
    """One picture's turns, laid out in blocks of one size behind it.

    Args:
        prefix: Tokens before the first block.
        ids: Token ids.
        turn: Which turn a token belongs to: 0 words of the prefix, 1 the picture, then 2, 3, ...;
            a blind turn is negative, -9999 is padding.
        places: Position ids.
        targets: What each token is to predict at the place before it; -100 where nothing.
        weights: Of the targets.
        kinds: Kind of question each target belongs to.
        question: Tokens of the first question, but for `TAIL`.
        named: Of questions that see the picture: place of the last token of every name, its
            category and 0; if there is but one, also the place where the answer begins, with 1.
    """

    prefix: int
    ids: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    question: int = 0
    named: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, ids: list[int], turn: int, place: int, answer: int = 0) -> None:
        """Lays tokens down, the last ``answer`` of them as targets yet without weight and kind."""
        size = len(ids)
        self.ids += ids
        self.turn += [turn] * size
        self.places += range(place, place + size)
        self.targets += [IGNORE] * (size - answer) + ids[size - answer :]
        self.weights += [0.0] * size
        self.kinds += [""] * size

    def mark(self, answer: int, weight: float, kind: str) -> None:
        """Says what the last ``answer`` tokens weigh in the loss and what they are about."""
        self.weights[-answer:] = [weight] * answer
        self.kinds[-answer:] = [kind] * answer


class Writer:
    """Turns into rows of token ids.

    Args:
        tokenizer: The model's.
        image: Id of the picture's placeholder.
        scheme: Of `schemes.SCHEMES`; "" for none.
        alone: One question a row: under MMA, what a picture holds depends on it.
    """

    def __init__(self, tokenizer: Any, image: int, scheme: str = "", alone: bool = False) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self.end = tokenizer.eos_token_id
        self.words = [tokenizer.bos_token_id, *self._ids("USER:")]
        self._image, self.scheme, self.alone = image, scheme, alone or scheme == "mma"
        self._names = Names(self._ids)

    def _ids(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False).ids

    def row(
        self,
        turns_of_picture: Sequence[TrainingTurn],
        pictures: int = 1,
        layout: tuple[int, int] = SHORT,
    ) -> TrainingRow:
        """Lays the turns about one picture, or about several, behind them.

        Args:
            turns_of_picture: Those for which no block has room are left out.
            pictures: How many.
            layout: Tokens of a block, and number of blocks.
        """
        count, cells = len(self.words), CELLS * pictures
        row = TrainingRow(count + cells)
        row.add(self.words, 0, 0)
        row.add([self._image] * cells, 1, count)
        on = row.prefix
        if self.scheme:  # these know one picture
            row.places[count:], on = places(self.scheme, count)
        size, number = layout
        if self.alone:
            turns_of_picture, number = [t for t in turns_of_picture if not t.blind], 1
        blocks = self._packed(turns_of_picture, size, number)
        for block in [first[:1] for first in blocks] if self.alone else blocks:
            for name, turn, question, answer in block:
                start = count if turn.blind else on
                row.question = row.question or len(question) - TAIL
                if not turn.blind:
                    at, found = len(row.ids), list(self._names.found(question))
                    row.named += [(at + end, code, 0) for end, code in found]
                    if len(found) == 1:
                        row.named.append((at + len(question) - 1, found[0][1], 1))
                row.add(question + answer, -name if turn.blind else name, start, len(answer))
                row.mark(len(answer), turn.weight, kind(turn))
            row.add([0] * (-(len(row.ids) - row.prefix) % size), _PADDING, 0)
        row.add([0] * (row.prefix + size * number - len(row.ids)), _PADDING, 0)
        return row

    def _packed(
        self, turns_of_picture: Sequence[TrainingTurn], size: int, number: int
    ) -> list[list[tuple[int, TrainingTurn, list[int], list[int]]]]:
        """Each turn in the first block with room for it: number, turn, question and answer."""
        blocks: list[list[tuple[int, TrainingTurn, list[int], list[int]]]]
        blocks, room = [[] for _ in range(number)], [size] * number
        for name, turn in enumerate(turns_of_picture, 2):
            question = self._ids(f"\n{turn.question} ASSISTANT:")
            answer = [*self._ids(turn.answer), self.end]
            tokens = len(question) + len(answer)
            place = next((i for i in range(number) if room[i] >= tokens), None)
            if place is not None:
                room[place] -= tokens
                blocks[place].append((name, turn, question, answer))
        return [block for block in blocks if block]


def kind(turn: TrainingTurn) -> str:
    """What a turn is about, for the figures."""
    words = turn.question
    if turn.blind:
        return "blind"
    if turn.answer in (*ACROSS, *DOWN):
        return "where"
    if turn.answer in COLOURS:
        return "what color"
    if turn.answer not in ("yes", "no"):
        return "caption" if len(turn.answer) > 12 else "open"
    if "total of" in words:
        return "count"
    if " side of the image" in words:
        return "place"
    if " side of " in words or " above " in words or " below " in words:
        return "position"
    if "scene?" in words:
        return "scene"
    return "color" if names_colour(words) else "existence"


def collate(
    rows: Sequence[TrainingRow], block: int, scheme: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows of one layout to one batch.

    Args:
        rows: As many tokens each.
        block: Tokens of a block.
        scheme: That of their `Writer`.

    Returns:
        ids, places and targets int64 [n, T], weights float32 [n, T], mask bfloat16 to be added to
        the scores: [n, 1, T, P + block] of the prefix's P keys and those of a query's own block,
        [n, 1, T, T] under a scheme.
    """
    ids, spots, targets, turn = (
        torch.tensor([getattr(row, name) for row in rows])
        for name in ("ids", "places", "targets", "turn")
    )
    weights = torch.tensor([row.weights for row in rows])
    prefix, tokens = rows[0].prefix, ids.shape[1]
    asking, asked_about = turn[:, :, None], turn[:, None, :]
    sees = (asking == asked_about) | (asked_about == 0) | ((asked_about == 1) & (asking > 0))
    sees &= torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if scheme:
        sees = opened(scheme, sees, rows[0].turn.index(1), [row.question for row in rows])
    else:
        own = sees[:, prefix:, prefix:].unflatten(1, (-1, block)).unflatten(3, (-1, block))
        own = own.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)
        none = torch.zeros(len(rows), prefix, block, dtype=torch.bool)
        sees = torch.cat([sees[:, :, :prefix], torch.cat([none, own], 1)], -1)
    mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, -30000.0)[:, None]
    return ids, spots, targets, weights, mask
