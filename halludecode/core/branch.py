"""A row of the batch: its prompt, and edits that have an identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from halludecode.core.errors import InvalidParameter
from halludecode.core.prompt import Prompt, digest


@dataclass(frozen=True)
class Edit:
    """A pure function with an identity: ``fn(x, **params[, **state][, rng=])``.

    Args:
        fn: Module-level function; a closure or lambda has no identity and is refused.
        params: Keyword arguments, hashable.
        use: Names of per-request state tensors passed by keyword (one entry per picture).
        draw: For random edits, which draw; the generator is seeded from the edit's identity, the
            draw, the digest of what is edited and the picture's index, so it is the same on every
            engine.
    """

    fn: Callable[..., Any]
    params: tuple[tuple[str, Any], ...] = ()
    use: tuple[str, ...] = ()
    draw: int | None = None

    def __post_init__(self) -> None:
        name = getattr(self.fn, "__qualname__", "")
        if not name or "<" in name or getattr(self.fn, "__closure__", None):
            raise InvalidParameter(
                f"Edit({name or self.fn!r}): a closure or lambda has no identity; "
                "use a module-level function and pass its values in params."
            )

    @property
    def key(self) -> str:
        """Identity: qualified name, parameters and draw."""
        return digest(
            f"{self.fn.__module__}.{self.fn.__qualname__}", self.params, self.use, self.draw
        )

    def seed(self, edited: str, index: int) -> int:
        """Seed of this edit's generator for the picture with digest ``edited`` at ``index``."""
        return int(digest(self.key, self.draw, edited, index)[:15], 16)

    def __call__(
        self, x: Any, *, edited: str, index: int, state: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply to one picture, pixel tensor or feature matrix."""
        extra = {name: (state or {})[name][index] for name in self.use}
        if self.draw is not None:
            import torch

            extra["rng"] = torch.Generator().manual_seed(self.seed(edited, index))
        return self.fn(x, **dict(self.params), **extra)


@dataclass(frozen=True)
class TowerEdit:
    """An edit inside the vision tower, in each of its layers, of every picture of a row.

    ``fn`` is called with keywords ``layer`` (from 0), ``layers`` (their number up to the one that
    feeds the projector) and the edit's own; it neither draws nor reads state.

    Args:
        at: What is edited, of T patches (and a CLS token) of V views at once.
            "layer": what leaves a layer, ``fn(x, entering=x0)``, both [.., T, D].
            "mlp": what its MLP puts out, ``fn(x)``.
            "attention": its heads' outputs, ``fn(q, k=k, v=v, visible=b, scaling=s)``, [V, H, T, d]
            each; b is which keys a query may see (bool, to be spread to [V, H, T, T]; None: all).
        edit: The function.
    """

    at: Literal["layer", "mlp", "attention"]
    edit: Edit

    def __post_init__(self) -> None:
        if self.edit.use or self.edit.draw is not None:
            raise InvalidParameter(
                f"TowerEdit({self.edit.fn.__qualname__}): an edit inside the vision tower takes "
                "its params alone; leave out use= and draw=."
            )

    @property
    def key(self) -> str:
        """Identity."""
        return digest(self.at, self.edit.key)


@dataclass(frozen=True)
class Branch:
    """One extra row: the prompt it sees and how its pictures are altered on the way in.

    Args:
        prompt: What the row reads.
        words: (question, pictures=pictures) -> question; run when the row is built, so that it
            may ask a model of its own what the pictures show.
        images: PIL -> PIL, before preprocessing.
        pixels: One picture's processor output, float32, same shape.
        tower: Within the vision tower.
        features: [N, D] -> [n, D] visual embeddings after the projector.
        tokens: n per picture when ``features`` changes the count; placeholders shrink with it.
        mask: bool [N] image tokens this row never sees.
        life: "prefill" rows are dropped after the first token.
    """

    prompt: Prompt
    images: Edit | None = None
    pixels: Edit | None = None
    features: Edit | None = None
    tokens: int | None = None
    mask: Edit | None = None
    life: Literal["answer", "prefill"] = "answer"
    words: Edit | None = None
    tower: TowerEdit | None = None

    def read(self) -> Prompt:
        """The prompt with its question reworded, where ``words`` is given."""
        if self.words is None:
            return self.prompt
        fn, params = self.words.fn, dict(self.words.params)
        pictures = self.prompt.pictures
        return self.prompt.map_question(lambda text: fn(text, pictures=pictures, **params))

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is done to its pictures, in the order it is done."""
        tower = self.tower.edit if self.tower else None
        return tuple(e for e in (self.images, self.pixels, tower, self.features, self.mask) if e)

    @property
    def key(self) -> str:
        """Digest of the prompt and every edit; branches with equal keys share a row."""
        edits = (self.images, self.pixels, self.features, self.mask, self.words, self.tower)
        return digest(self.prompt.key, *(e.key if e else "" for e in edits), self.tokens, self.life)
