"""Stage 2: projector and decoder learn to describe and to answer; the tower stays as it is.

All turns about a picture share one row of the batch: the prefix ``<s> USER: <image>`` once, then
every turn as if it stood alone behind it. A turn sees the prefix and itself, its positions start
where the prefix ends; a blind turn does not see the picture and starts where the picture would.
The loss is on answers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halludecode.testbed.stream import Stream
from halludecode.testbed.train.conversation import turns
from halludecode.testbed.train.corpus import Corpus, Story
from halludecode.testbed.train.gaze import WEIGHT, Gaze, aimed
from halludecode.testbed.train.language import TrainingTurn, of_a_crowd
from halludecode.testbed.train.network import Trainer, autocast, patches, pixels
from halludecode.testbed.train.prompts import of_two, part
from halludecode.testbed.train.rows import IGNORE, LONG, MANY, SHORT, TrainingRow, Writer, collate
from halludecode.testbed.train.schemes import attend

RATE, DECAY = 1.5e-3, 0.02
BATCH = 24
CYCLE = 8  # steps: of so many one has long turns, one two pictures in half as many rows, and
CROWDED = (1, 5)  # these ask for places and colours in a crowd, which carries no habit
_PURPOSE = 15 * 16 + 2  # of the streams the sentences come from
_SHOWN = ("existence", "count", "what color", "color", "position", "place", "where", "scene")
_HEAD_SCALE = 0.06  # of the word embeddings the output layer starts from


class Stage2:
    """Batches, steps and figures of the language stage.

    Args:
        model: With the tower of stage 1.
        tokenizer: Its tokenizer.
        pictures: ``scenes`` and ``collages`` to train on, ``judged`` to measure on.
        seed: Of batches and sentences.
        steps: Number of updates.
        scheme: Of `schemes.SCHEMES`, which the decoder learns; "" for none.
        control: The same sentences as under the scheme, without it.
        warm: The model has been through both stages before.
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
        control: bool = False,
        warm: bool = False,
    ) -> None:
        self._model, self._seed, self.steps = model, seed, steps
        self._scheme = scheme
        self._scenes, self._judged = pictures["scenes"], pictures["judged"]
        self._crowds = pictures["collages"]
        attention, alone = "" if control else scheme, scheme == "mma"
        self._writer = Writer(tokenizer, model.config.image_token_id, attention, alone)
        attend(model, attention, len(self._writer.words))
        inner = model.model
        self.net = nn.ModuleDict(
            {
                "decoder": inner.language_model,
                "projector": inner.multi_modal_projector,
                "head": model.lm_head,
            }
        )
        if not warm:
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

    def _forward(
        self,
        images: np.ndarray,
        rows: Sequence[TrainingRow],
        block: int,
        gaze: Gaze | None = None,
    ) -> Any:
        """Losses per target, hits and weights, all [targets]; the images in the rows' order."""
        device, scheme = self._model.device, self._writer.scheme
        ids, places, targets, weights, mask = (x.to(device) for x in collate(rows, block, scheme))
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
                prefix=None if scheme else rows[0].prefix,
                gaze=gaze,
            ).last_hidden_state
            has_target = targets[:, 1:] != IGNORE
            logits = self.net["head"](hidden[:, :-1][has_target]).float()
        expected = targets[:, 1:][has_target]
        losses = F.cross_entropy(logits, expected, reduction="none")
        return losses, logits.argmax(-1) == expected, weights[:, 1:][has_target]

    def step(self, number: int) -> dict[str, float]:
        """One update; pictures and sentences depend on the seed and the number alone."""
        rng = np.random.default_rng([self._seed, 2, number])
        crowded = number % CYCLE in CROWDED
        source = self._crowds if crowded else self._scenes
        picks = np.sort(rng.integers(len(source.stories), size=BATCH))
        images = np.array(source.images[picks])
        layout = MANY if crowded else LONG if number % CYCLE in (3, 7) else SHORT
        gaze = None
        if number % CYCLE == 7 and not self._scheme:  # a scheme knows one picture
            stream = Stream(self._seed, _PURPOSE, number)
            images, rows = self._pairs(source, images, picks, stream)
        else:
            about = of_a_crowd if crowded else partial(turns, long=layout == LONG)
            streams = (Stream(self._seed, _PURPOSE, number, i) for i in range(BATCH))
            stories = [source.stories[i] for i in picks.tolist()]
            said = map(self._told, streams, repeat(about), stories)
            rows = [self._writer.row(turns_of_picture, 1, layout) for turns_of_picture in said]
            if not self._scheme:  # whose attention is not watched
                gaze = aimed(rows, source.kinds[picks], len(self._writer.words))
        losses, _, weights = self._forward(images, rows, layout[0], gaze)
        loss = (losses * weights).sum() / weights.sum()
        self.trainer.step(loss + WEIGHT * gaze.loss() if gaze else loss, number)
        return {"loss": loss.item()}

    def _told(
        self,
        stream: Stream,
        about: Callable[[Stream, Story], list[TrainingTurn]],
        story: Story,
    ) -> list[TrainingTurn]:
        """The turns, in any order where one alone is heard, since the caption comes first else."""
        said = about(stream, story)
        return stream.shuffled(said) if self._writer.alone else said

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
                self._told(Stream(0, _PURPOSE, int(i)), turns, self._judged.stories[i])
                for i in picks
            ]
            rows = [self._writer.row(turn) for turn in conversations]
            losses, right, _ = self._forward(np.array(self._judged.images[picks]), rows, SHORT[0])
            marks = [
                (kind_, target)
                for row in rows
                for kind_, target in zip(row.kinds, row.targets, strict=True)
                if target != IGNORE
            ]
            predictions = zip(marks, right.tolist(), losses.tolist(), strict=True)
            for (kind_, target), hit, loss in predictions:
                if kind_ == "caption":
                    caption.append(loss)
                elif target != self._writer.end:
                    hits.setdefault(kind_, []).append(hit)
        if not self._scheme:
            hits["first or second"] = self._told_apart()
        accuracies = {
            f"{k} accuracy": float(np.mean(hits[k]))
            for k in (*_SHOWN, "first or second")
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
            if target != IGNORE
        )
        return [
            hit
            for (kind_, target), hit in zip(marks, right.tolist(), strict=True)
            if kind_ == "existence" and target != self._writer.end
        ]
