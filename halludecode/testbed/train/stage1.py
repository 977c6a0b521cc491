"""Stage 1: the vision tower learns what every patch shows, in the decoder's own words.

A projected patch is compared, by cosine, with the mean embedding of each category's words, of each
colour's word, and of the words for left and right, above and below, whose difference is to tell an
object's column and row, and nothing of the background; two small heads read both off every patch
too (they are thrown away). So the tower learns to see, the picture's tokens come to lie beside the
words for them, and where objects are is said in words as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halludecode.testbed.train.corpus import CELLS, COLOURLESS, GRID, GROUND, Corpus
from halludecode.testbed.train.network import Trainer, Words, autocast, patches, pixels

RATE, DECAY = 2e-3, 0.02
BATCH = 48
COLLAGES = 2 / 3  # share of a batch
_GROUND_WEIGHT, _COLOUR_WEIGHT, _PLACE_WEIGHT, _SIDE_WEIGHT = 0.1, 0.4, 0.1, 2.0
_REACH = 0.7  # difference of cosines with two ends' words, at these ends: as loud as a colour


class Vision(nn.Module):
    """The model with what only this stage needs.

    Args:
        model: Its tower, projector and embeddings are trained.
        words: Ids of categories and colours.
    """

    def __init__(self, model: Any, words: Words) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.embed = model.get_input_embeddings()
        self._model, self._words = [model], words  # in a list: not a second set of parameters
        width = self.embed.weight.shape[1]
        self.ground = nn.Parameter(torch.randn(width) * 0.2)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.row, self.column = nn.Linear(width, GRID), nn.Linear(width, GRID)
        weights = torch.ones(GROUND + 1)
        weights[GROUND] = _GROUND_WEIGHT
        self.register_buffer("weights", weights)
        cells = torch.arange(CELLS)
        self.register_buffer("cells", cells)
        ends = (torch.stack([cells % GRID, cells // GRID], -1) + 0.5) / GRID
        self.register_buffer("ends", ends)

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Category scores [n, 100, 81] and projected patches [n, 100, D]."""
        projected = self.projector(patches(self._model[0], images)).float()
        table = torch.cat([self._words.categories(self.embed.weight), self.ground[None]])
        cosine = F.normalize(projected, dim=-1) @ F.normalize(table.float(), dim=-1).T
        return cosine * self.scale.exp(), projected

    def loss(self, images: Tensor, kinds: Tensor, colours: Tensor) -> Tensor:
        """The parts, weighted: kinds, colours, rows and columns, words for places.

        Args:
            images: [n, 3, 120, 120].
            kinds: int64 [n, 100].
            colours: int64 [n, 100].
        """
        scores, projected = self.scores(images)
        loss = F.cross_entropy(scores.flatten(0, 1), kinds.flatten(), weight=self.weights)
        tinted = colours != COLOURLESS
        if tinted.any():
            table = F.normalize(self._words.colours(self.embed.weight).float(), dim=-1)
            cosine = F.normalize(projected[tinted], dim=-1) @ table.T
            loss = loss + _COLOUR_WEIGHT * F.cross_entropy(
                cosine * self.scale.exp(), colours[tinted]
            )
        count = len(images)
        rows = F.cross_entropy(
            self.row(projected).flatten(0, 1), (self.cells // GRID).repeat(count)
        )
        columns = F.cross_entropy(
            self.column(projected).flatten(0, 1), (self.cells % GRID).repeat(count)
        )
        loss = loss + _PLACE_WEIGHT * (rows + columns)
        thing = (kinds != GROUND)[..., None]
        wrong_by = self.sides(projected) - torch.where(thing, self.ends, 0.5)
        on, off = (wrong_by.square() * mask for mask in (thing, ~thing))
        here = on.sum() / thing.sum().clamp_min(1) + off.sum() / (~thing).sum().clamp_min(1)
        return loss + _SIDE_WEIGHT * here / 4  # two axes, two halves

    def sides(self, projected: Tensor) -> Tensor:
        """[n, 100, 2]: how far towards "right" and "below" a patch's words say, 0..1."""
        table = F.normalize(self._words.places(self.embed.weight).float(), dim=-1)
        cosine = F.normalize(projected, dim=-1) @ (table[:, 1] - table[:, 0]).T
        return (cosine / _REACH + 1) / 2


class Stage1:
    """Batches, steps and figures of the vision stage.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        pictures: ``scenes``, ``collages`` (crowds of objects) and ``judged`` (clean pictures to
            measure on).
        seed: Of the batches.
        steps: Number of updates.
    """

    name = "vision"

    def __init__(
        self, model: Any, tokenizer: Any, pictures: Mapping[str, Corpus], seed: int, steps: int
    ) -> None:
        self.net = Vision(model, Words(tokenizer)).to(model.device)
        self.steps = steps
        self._sources = pictures["scenes"], pictures["collages"]
        self._judged, self._seed = pictures["judged"], seed
        self._device = model.device
        self.trainer = Trainer(self.net.named_parameters(), RATE, DECAY, steps, floor=0.01)

    def step(self, number: int) -> dict[str, float]:
        """One update; the batch depends on the seed and the number alone."""
        rng = np.random.default_rng([self._seed, 1, number])
        crowd = round(BATCH * COLLAGES)
        parts = [
            _random_batch(rng, self._sources[0], BATCH - crowd),
            _random_batch(rng, self._sources[1], crowd),
        ]
        images, kinds, colours = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        with autocast(self._device):
            loss = self.net.loss(
                pixels(images, self._device), self._long(kinds), self._long(colours)
            )
        self.trainer.step(loss, number)
        return {"loss": loss.item()}

    def _long(self, labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels).long().to(self._device)

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Measures on clean pictures.

        Returns:
            Share of object and of background patches told right, and by how many patches, on
            average, the words for places are wrong about an object's column and row.
        """
        right, ground, sides = [], [], []
        for start in range(0, len(self._judged.kinds), BATCH):
            batch = slice(start, start + BATCH)
            with autocast(self._device):
                scores, projected = self.net.scores(
                    pixels(np.array(self._judged.images[batch]), self._device)
                )
            wrong_by = self.net.sides(projected) - self.net.ends
            predicted = scores.argmax(-1).cpu().numpy()
            kinds = self._judged.kinds[batch]
            hit = predicted == kinds
            right.append(hit[kinds != GROUND])
            ground.append(hit[kinds == GROUND])
            sides.append(wrong_by.abs().cpu().numpy()[kinds != GROUND] * GRID)
        return {
            "patch accuracy": float(np.concatenate(right).mean()),
            "background accuracy": float(np.concatenate(ground).mean()),
            "place error": float(np.concatenate(sides).mean()),
        }


def _random_batch(
    rng: np.random.Generator, source: Corpus, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pictures with their labels; half of them mirrored."""
    picks = np.sort(rng.integers(len(source.kinds), size=count))
    images = np.array(source.images[picks])
    kinds, colours = (x[picks].reshape(-1, GRID, GRID) for x in (source.kinds, source.colours))
    flip = rng.random(count) < 0.5
    images[flip] = images[flip, :, ::-1]
    kinds[flip], colours[flip] = kinds[flip, :, ::-1], colours[flip, :, ::-1]
    return images, kinds.reshape(count, CELLS), colours.reshape(count, CELLS)
