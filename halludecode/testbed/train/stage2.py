"""Stage 2: projector and decoder learn to describe and to answer; the tower stays as it is.

All turns about a picture share one row of the batch: the prefix ``<s> USER: <image>`` once, then
every turn as if it stood alone behind it. A turn sees the prefix and itself, its positions start
where the prefix ends; a blind turn does not see the picture and starts where the picture would.
The loss is on answers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halludecode.testbed.categories import COLOURS
from halludecode.testbed.stream import Stream
from halludecode.testbed.train.conversation import turns
from halludecode.testbed.train.corpus import CELLS, Corpus
from halludecode.testbed.train.language import TrainingTurn
from halludecode.testbed.train.network import ACROSS, DOWN, Trainer, autocast, patches, pixels
from halludecode.testbed.train.prompts import of_two, part

RATE, DECAY = 1.5e-3, 0.02
BATCH = 24
SHORT, LONG = (84, 2), (188, 1)  # tokens of a block and blocks of a row behind its pictures
CYCLE = 8  # steps: of so many one has long turns, and one two pictures in half as many rows
_PURPOSE = 15 * 16 + 2  # of the streams the sentences come from
_IGNORE, _PADDING = -100, -9999
_HEAD_SCALE = 0.06  # of the word embeddings the output layer starts from


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
    """

    prefix: int
    ids: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, ids: list[int], turn: int, place: int, answer: int = 0) -> None:
        """Lays tokens down, the last ``answer`` of them as targets yet without weight and kind."""
        size = len(ids)
        self.ids += ids
        self.turn += [turn] * size
        self.places += range(place, place + size)
        self.targets += [_IGNORE] * (size - answer) + ids[size - answer :]
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
    """

    def __init__(self, tokenizer: Any, image: int) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self.end = tokenizer.eos_token_id
        self.words = [tokenizer.bos_token_id, *self._ids("USER:")]
        self._image = image

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
        size, number = layout
        for block in self._packed(turns_of_picture, size, number):
            for name, turn, question, answer in block:
                start = count if turn.blind else row.prefix
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
    return "color" if any(f" {colour}" in words for colour in COLOURS) else "existence"


def collate(
    rows: Sequence[TrainingRow], block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows of one layout to one batch.

    Args:
        rows: As many tokens each.
        block: Tokens of a block.

    Returns:
        ids, places and targets int64 [n, T], weights float32 [n, T], mask bfloat16 [n, 1, T, P +
        block]: to be added to the scores of the prefix's P keys and those of a query's own block.
    """
    ids, places, targets, turn = (
        torch.tensor([getattr(row, name) for row in rows])
        for name in ("ids", "places", "targets", "turn")
    )
    weights = torch.tensor([row.weights for row in rows])
    prefix = rows[0].prefix
    asking = turn[:, :, None]
    above = turn[:, None, :prefix]
    sees_prefix = (above == 0) | ((above == 1) & (asking > 0))
    sees_prefix[:, :prefix] &= torch.ones(prefix, prefix, dtype=torch.bool).tril()
    own = turn[:, prefix:].unflatten(1, (-1, block))
    sees_block = own[..., None] == own[..., None, :]
    sees_block &= torch.ones(block, block, dtype=torch.bool).tril()
    none = torch.zeros(len(rows), prefix, block, dtype=torch.bool)
    sees = torch.cat([sees_prefix, torch.cat([none, sees_block.flatten(1, 2)], 1)], -1)
    mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, -30000.0)[:, None]
    return ids, places, targets, weights, mask


class Stage2:
    """Batches, steps and figures of the language stage.

    Args:
        model: With the tower of stage 1.
        tokenizer: Its tokenizer.
        pictures: ``scenes`` to train on, ``judged`` to measure on.
        seed: Of batches and sentences.
        steps: Number of updates.
    """

    name = "words"

    def __init__(
        self, model: Any, tokenizer: Any, pictures: Mapping[str, Corpus], seed: int, steps: int
    ) -> None:
        self._model, self._seed, self.steps = model, seed, steps
        self._scenes, self._judged = pictures["scenes"], pictures["judged"]
        self._writer = Writer(tokenizer, model.config.image_token_id)
        inner = model.model
        self.net = nn.ModuleDict(
            {
                "decoder": inner.language_model,
                "projector": inner.multi_modal_projector,
                "head": model.lm_head,
            }
        )
        self._level()
        self.trainer = Trainer(self.net.named_parameters(), RATE, DECAY, steps)

    @torch.no_grad()
    def _level(self) -> None:
        """Picture tokens as loud as words; the output layer a quiet copy of the words."""
        words = self._model.get_input_embeddings().weight
        projected = self.net["projector"](self._patches(np.array(self._judged.images[:64])))
        factor = words.square().mean().sqrt() / projected.square().mean().sqrt()
        last = self.net["projector"].linear_2
        last.weight *= factor
        last.bias *= factor
        self.net["head"].weight.copy_(words * _HEAD_SCALE)

    @torch.no_grad()
    def _patches(self, images: np.ndarray) -> Tensor:
        return patches(self._model, pixels(images, self._model.device))

    def _forward(self, images: np.ndarray, rows: Sequence[TrainingRow], block: int) -> Any:
        """Losses per target, hits and weights, all [targets]; the images in the rows' order."""
        device = self._model.device
        ids, places, targets, weights, mask = (x.to(device) for x in collate(rows, block))
        with autocast(device):
            projected = self.net["projector"](self._patches(images))
            embeds = self.net["decoder"].embed_tokens(ids)
            seen = (ids == self._model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(seen, projected.to(embeds.dtype))
            hidden = self.net["decoder"](
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=places,
                use_cache=False,
                prefix=rows[0].prefix,
            ).last_hidden_state
            has_target = targets[:, 1:] != _IGNORE
            logits = self.net["head"](hidden[:, :-1][has_target]).float()
        expected = targets[:, 1:][has_target]
        losses = F.cross_entropy(logits, expected, reduction="none")
        return losses, logits.argmax(-1) == expected, weights[:, 1:][has_target]

    def step(self, number: int) -> dict[str, float]:
        """One update; pictures and sentences depend on the seed and the number alone."""
        rng = np.random.default_rng([self._seed, 2, number])
        picks = np.sort(rng.integers(len(self._scenes.stories), size=BATCH))
        images = np.array(self._scenes.images[picks])
        layout = LONG if number % CYCLE in (3, 7) else SHORT
        if number % CYCLE == 7:
            stream = Stream(self._seed, _PURPOSE, number)
            images, rows = self._pairs(self._scenes, images, picks, stream)
        else:
            rows = self._rows(picks, number, layout)
        losses, _, weights = self._forward(images, rows, layout[0])
        loss = (losses * weights).sum() / weights.sum()
        self.trainer.step(loss, number)
        return {"loss": loss.item()}

    def _rows(self, picks: np.ndarray, number: int, layout: tuple[int, int]) -> list[TrainingRow]:
        streams = (Stream(self._seed, _PURPOSE, number, i) for i in range(len(picks)))
        pairs = zip(streams, picks.tolist(), strict=True)
        said = (turns(s, self._scenes.stories[i], layout == LONG) for s, i in pairs)
        return [self._writer.row(turns_of_picture, 1, layout) for turns_of_picture in said]

    def _pairs(
        self, source: Corpus, images: np.ndarray, picks: np.ndarray, stream: Stream
    ) -> tuple[np.ndarray, list[TrainingRow]]:
        """Half as many rows: of two scenes each, or of one (every fourth) and a part of it."""
        rows, half = [], len(picks) // 2
        order = np.arange(2 * half).reshape(2, half).T.flatten()
        images, picks = images[order], picks[order]
        for i in range(half):
            stories = [source.stories[p] for p in picks[2 * i : 2 * i + 2].tolist()]
            if i % 4 == 3:
                images[2 * i + 1] = part(stream, images[2 * i])
                rows.append(self._writer.row(turns(stream, stories[0]), 2, LONG))
            else:
                rows.append(self._writer.row(of_two(stream, *stories), 2, LONG))
        return images, rows

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """On clean pictures: share of right answers by kind of question, and captions' loss."""
        hits: dict[str, list[bool]] = {}
        caption: list[float] = []
        for start in range(0, len(self._judged.stories), BATCH):
            picks = np.arange(start, min(start + BATCH, len(self._judged.stories)))
            conversations = [
                turns(Stream(0, _PURPOSE, int(i)), self._judged.stories[i]) for i in picks
            ]
            rows = [self._writer.row(turn) for turn in conversations]
            losses, right, _ = self._forward(np.array(self._judged.images[picks]), rows, SHORT[0])
            marks = [
                (kind_, target)
                for row in rows
                for kind_, target in zip(row.kinds, row.targets, strict=True)
                if target != _IGNORE
            ]
            predictions = zip(marks, right.tolist(), losses.tolist(), strict=True)
            for (kind_, target), hit, loss in predictions:
                if kind_ == "caption":
                    caption.append(loss)
                elif target != self._writer.end:
                    hits.setdefault(kind_, []).append(hit)
        closed = ("existence", "count", "color", "position", "place", "where", "scene")
        hits["first or second"] = self._told_apart()
        accuracies = {
            f"{k} accuracy": float(np.mean(hits[k]))
            for k in (*closed, "first or second")
            if k in hits
        }
        return accuracies | {"caption loss": float(np.mean(caption))}

    def _told_apart(self) -> list[bool]:
        """Whether questions about one of two pictures are answered right, yes or no alone."""
        picks = np.arange(64)
        images, rows = self._pairs(
            self._judged, np.array(self._judged.images[picks]), picks, Stream(1, _PURPOSE)
        )
        rows = [row for i, row in enumerate(rows) if i % 4 != 3]
        kept = np.array([i for i in range(64) if i // 2 % 4 != 3])
        _, right, _ = self._forward(images[kept], rows, LONG[0])
        marks = (
            (kind_, target)
            for row in rows
            for kind_, target in zip(row.kinds, row.targets, strict=True)
            if target != _IGNORE
        )
        return [
            hit
            for (kind_, target), hit in zip(marks, right.tolist(), strict=True)
            if kind_ == "existence" and target != self._writer.end
        ]
