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
from halludecode.testbed.train.corpus import CELLS, Corpus
from halludecode.testbed.train.language import TrainingTurn, turns
from halludecode.testbed.train.network import Trainer, autocast, patches, pixels
from halludecode.testbed.train.schemes import attend, opened, places

RATE, DECAY = 1.5e-3, 0.02
BATCH = 32
LONGEST = 300  # tokens of a row; turns that do not fit are left out
TAIL = 2  # tokens of "ASSISTANT:", which a picture does not see under MMA
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
        question: Tokens of the first question, but for `TAIL`.
    """

    ids: list[int]
    turn: list[int]
    places: list[int]
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    question: int = 0

    def __post_init__(self) -> None:
        self.targets = [_IGNORE] * len(self.ids)
        self.weights, self.kinds = [0.0] * len(self.ids), [""] * len(self.ids)


class Writer:
    """Turns into rows of token ids.

    Args:
        tokenizer: The model's.
        image: Id of the picture's placeholder.
    """

    def __init__(self, tokenizer: Any, image: int, scheme: str = "") -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self.end = tokenizer.eos_token_id
        self.words = [tokenizer.bos_token_id, *self._ids("USER:")]
        self._image, self.scheme = image, scheme

    def _ids(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False).ids

    @property
    def start(self) -> int:
        """Length of the prefix."""
        return len(self.words) + CELLS

    def row(self, turns_of_picture: Sequence[TrainingTurn]) -> TrainingRow:
        """Lays the turns of one picture behind the prefix."""
        count = len(self.words)
        ids = self.words + [self._image] * CELLS
        pictured, on = places(self.scheme, count)
        row = TrainingRow(ids, [0] * count + [1] * CELLS, [*range(count), *pictured])
        if self.scheme == "mma":  # what a picture holds depends on its one question
            turns_of_picture = [turn for turn in turns_of_picture if not turn.blind][:1]
        for number, turn in enumerate(turns_of_picture, 2):
            question = self._ids(f"\n{turn.question} ASSISTANT:")
            answer = [*self._ids(turn.answer), self.end]
            size = len(question) + len(answer)
            if len(row.ids) + size > LONGEST:
                continue
            start_place = count if turn.blind else on
            row.question = row.question or len(question) - TAIL
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
    rows: Sequence[TrainingRow], scheme: str = "", first: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows to one batch.

    Args:
        rows: Of one `Writer`.
        scheme: Its scheme.
        first: Place of the picture's first token.

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
    sees = opened(scheme, sees, first, [row.question for row in rows]) if scheme else sees
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
        scheme: Of `schemes.SCHEMES`, which the decoder learns; "" for none.
    """

    name = "words"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pictures: Mapping[str, Corpus],
        seed: int,
        steps: int,
        scheme: str = "",
    ) -> None:
        self._model, self._seed, self.steps = model, seed, steps
        self._scenes, self._judged = pictures["scenes"], pictures["judged"]
        self._writer = Writer(tokenizer, model.config.image_token_id, scheme)
        attend(model, scheme, len(self._writer.words))
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
        projected = self.net["projector"](self._patches(self._judged, np.arange(64)))
        factor = words.square().mean().sqrt() / projected.square().mean().sqrt()
        last = self.net["projector"].linear_2
        last.weight *= factor
        last.bias *= factor
        self.net["head"].weight.copy_(words * _HEAD_SCALE)

    @torch.no_grad()
    def _patches(self, source: Corpus, picks: np.ndarray) -> Tensor:
        images = pixels(np.array(source.images[picks]), self._model.device)
        return patches(self._model, images)

    def _forward(self, source: Corpus, picks: np.ndarray, rows: Sequence[TrainingRow]) -> Any:
        """Losses per target, hits, targets and weights, all [targets]."""
        device = self._model.device
        ids, places, targets, weights, mask = (
            x.to(device) for x in collate(rows, self._writer.scheme, len(self._writer.words))
        )
        start, words = self._writer.start, len(self._writer.words)
        with autocast(device):
            projected = self.net["projector"](self._patches(source, picks))
            embeds = self.net["decoder"].embed_tokens(ids)
            embeds = torch.cat(
                [embeds[:, :words], projected.to(embeds.dtype), embeds[:, start:]], 1
            )
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
        losses, _, weights = self._forward(self._scenes, picks, self._rows(picks, number))
        loss = (losses * weights).sum() / weights.sum()
        self.trainer.step(loss, number)
        return {"loss": loss.item()}

    def _rows(self, picks: np.ndarray, number: int) -> list[TrainingRow]:
        streams = (Stream(self._seed, _PURPOSE, number, i) for i in range(len(picks)))
        pairs = zip(streams, picks.tolist(), strict=True)
        return [self._writer.row(turns(s, self._scenes.stories[i])) for s, i in pairs]

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
            losses, right, _ = self._forward(self._judged, picks, rows)
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
        closed = ("existence", "count", "color", "position", "place", "scene")
        accuracies = {f"{k} accuracy": float(np.mean(hits[k])) for k in closed if k in hits}
        return accuracies | {"caption loss": float(np.mean(caption))}
