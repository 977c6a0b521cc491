"""Whole answers under an edit of attention written out in loops, beside the engine's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive


@dataclass(frozen=True)
class Places:
    """Where a prompt's tokens are; the emitting rows begin at ``length - 1``."""

    image: tuple[int, ...]
    length: int

    @property
    def system(self) -> range:
        """Keys before the image."""
        return range(self.image[0])

    def after_image(self, count: int) -> list[int]:
        """Rows of ``count`` that are text and see the image."""
        return [i for i in range(self.image[0], count) if i not in set(self.image)]


Edit = Callable[[int, naive.Weights, Places], naive.Weights]


def check_run(engine, family: str, spec: str, *, scores: Edit | None = None, weights=None) -> None:
    """The engine writes what plain forwards under these edits write.

    Args:
        engine: Its plain model is asked without a cache.
        family: Its name.
        spec: What the engine runs.
        scores: ``(layer, scores [H][T][T], places)``, masked but before softmax.
        weights: The same, after softmax.
    """
    model, image = engine.model, families.pictures()[1]
    text = families.FAMILIES[family].prompt("What is this?")
    main = naive.inputs_of(engine.processor, text, [image])
    ids = main["input_ids"][0].tolist()
    token = engine.row_builder.inputs.image_token
    places = Places(tuple(i for i, each in enumerate(ids) if each == token), len(ids))

    def laid(edit: Edit | None):
        return None if edit is None else lambda layer, each: edit(layer, each, places)

    def step(written, t):
        with naive.edited(model, scores=laid(scores), weights=laid(weights)):
            return naive.next_logits(model, main, written)

    check(engine, spec, naive.write(step, N, ()), image)
