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
BATCH = 32
LONGEST = 360  # tokens of a row behind one picture; turns that do not fit are left out
PAIRS = 8  # every so many steps the rows of a batch, half as many, have two pictures
_PURPOSE = 15 * 16 + 2  # of the streams the sentences come from
_IGNORE = -100
_HEAD_SCALE = 0.06  # of the word embeddings the output layer starts from


@dataclass
class TrainingRow:
    """One picture's turns, laid out behind each other.

    Args:
        ids: Token ids.
        turn: Which turn a token belongs to: 0 words of the prefix, 1 the picture, then 2, 3, ...;
            a blind turn is negative.
        places: Position ids.
        targets: What each token is to predict at the place before it; -100 where nothing.
        weights: Of the targets.
        kinds: Kind of question each target belongs to.
    """

    ids: list[int]
    turn: list[int]
    places: list[int]
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.targets = [_IGNORE] * len(self.ids)
        self.weights, self.kinds = [0.0] * len(self.ids), [""] * len(self.ids)


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

    def row(self, turns_of_picture: Sequence[TrainingTurn], pictures: int = 1) -> TrainingRow:
        """Lays the turns about one picture, or about several, behind the prefix."""
        count, cells = len(self.words), CELLS * pictures
        start = count + cells
        ids = self.words + [self._image] * cells
        row = TrainingRow(ids, [0] * count + [1] * cells, list(range(start)))
        for number, turn in enumerate(turns_of_picture, 2):
            question = self._ids(f"\n{turn.question} ASSISTANT:")
            answer = [*self._ids(turn.answer), self.end]
            size = len(question) + len(answer)
            if len(row.ids) + size > LONGEST + cells - CELLS:
                continue
            start_place = count if turn.blind else start
            row.ids += question + answer
            row.turn += [-number if turn.blind else number] * size
            row.places += range(start_place, start_place + size)
            row.targets += [_IGNORE] * len(question) + answer
            row.weights += [0.0] * len(question) + [turn.weight] * len(answer)
            row.kinds += [""] * len(question) + [kind(turn)] * len(answer)
        return row


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


def collate(rows: Sequence[TrainingRow]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows to one batch.

    Returns:
        ids, places and targets int64 [n, T], weights float32 [n, T], mask bfloat16 [n, 1, T, T]
        to be added to the scores.
    """
    longest = max(len(row.ids) for row in rows)
    ids, places, targets, turn = (
        np.full((len(rows), longest), fill, np.int64) for fill in (0, 0, _IGNORE, -9999)
    )
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        size = len(row.ids)
        ids[i, :size], places[i, :size], targets[i, :size] = row.ids, row.places, row.targets
        turn[i, :size], weights[i, :size] = row.turn, row.weights
    turns_of_tokens = torch.from_numpy(turn)
    asking, asked_about = turns_of_tokens[:, :, None], turns_of_tokens[:, None, :]
    sees = (asking == asked_about) | (asked_about == 0) | ((asked_about == 1) & (asking > 0))
    sees &= torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, -30000.0)[:, None]
    arrays = (torch.from_numpy(x) for x in (ids, places, targets, weights))
    return (*arrays, mask)  # type: ignore[return-value]


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

    def _forward(self, images: np.ndarray, rows: Sequence[TrainingRow]) -> Any:
        """Losses per target, hits and weights, all [targets]; the images in the rows' order."""
        device = self._model.device
        ids, places, targets, weights, mask = (x.to(device) for x in collate(rows))
        with autocast(device):
            projected = self.net["projector"](self._patches(images))
            embeds = self.net["decoder"].embed_tokens(ids)
            seen = (ids == self._model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(seen, projected.to(embeds.dtype))
            hidden = self.net["decoder"](
                inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False
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
        if number % PAIRS == PAIRS - 1:
            images, rows = self._pairs(
                self._scenes, images, picks, Stream(self._seed, _PURPOSE, number)
            )
        else:
            rows = self._rows(picks, number)
        losses, _, weights = self._forward(images, rows)
        loss = (losses * weights).sum() / weights.sum()
        self.trainer.step(loss, number)
        return {"loss": loss.item()}

    def _rows(self, picks: np.ndarray, number: int) -> list[TrainingRow]:
        streams = (Stream(self._seed, _PURPOSE, number, i) for i in range(len(picks)))
        pairs = zip(streams, picks.tolist(), strict=True)
        return [self._writer.row(turns(s, self._scenes.stories[i])) for s, i in pairs]

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
                rows.append(self._writer.row(turns(stream, stories[0]), 2))
            else:
                rows.append(self._writer.row(of_two(stream, *stories), 2))
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
            losses, right, _ = self._forward(np.array(self._judged.images[picks]), rows)
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
        _, right, _ = self._forward(images[kept], rows)
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
