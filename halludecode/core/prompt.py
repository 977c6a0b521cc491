"""What a row of the batch sees: prompts, pictures, and edits that have an identity.

Everything here is immutable and has a digest, because equal rows are computed once, prefixes are
reused across requests, and random edits must draw the same noise wherever they run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from halludecode.core.errors import InvalidParameter, InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def digest(*parts: object) -> str:
    """Hex digest of the parts' text or bytes, each part kept apart from the next."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


@dataclass(frozen=True, eq=False)
class Picture:
    """A PIL image in RGB with the digest of its content; equal content is equal."""

    image: Image
    key: str

    @classmethod
    def of(cls, image: Image) -> Picture:
        """Wrap an image, converted to RGB."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return cls(rgb, digest(rgb.size, rgb.tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


Part = str | Picture


@dataclass(frozen=True)
class Turn:
    """One turn of a chat: a role and its text and pictures in order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """Chat turns with pictures in place; ``raw`` text is already in the model's own template."""

    turns: tuple[Turn, ...]
    raw: bool = False

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in order."""
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, Picture))

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        last = [turn for turn in self.turns if turn.role == "user"] or list(self.turns)
        return "".join(part for part in last[-1].parts if isinstance(part, str)).strip()

    @property
    def key(self) -> str:
        """Digest of text, roles and picture content."""
        flat: list[str] = ["raw" if self.raw else "chat"]
        for turn in self.turns:
            flat.append("role:" + turn.role)
            flat += [
                f"picture:{p.key}" if isinstance(p, Picture) else f"text:{p}" for p in turn.parts
            ]
        return digest(*flat)

    def without_images(self) -> Prompt:
        """The image-free prompt: each placeholder goes, with the newline that follows it."""
        turns: list[Turn] = []
        for turn in self.turns:
            parts: list[Part] = []
            after_picture = False
            for part in turn.parts:
                if isinstance(part, str):
                    parts.append(part.removeprefix("\n") if after_picture else part)
                after_picture = isinstance(part, Picture)
            turns.append(replace(turn, parts=tuple(parts)))
        return replace(self, turns=tuple(turns))

    def map_images(self, fn: Callable[[Image], Image]) -> Prompt:
        """Every picture replaced by ``fn(picture)``."""
        return self.replace_pictures([Picture.of(fn(p.image)) for p in self.pictures])

    def replace_pictures(self, pictures: list[Picture]) -> Prompt:
        """The same prompt with other pictures, in order."""
        fresh = iter(pictures)
        return replace(
            self,
            turns=tuple(
                replace(
                    t, parts=tuple(next(fresh) if isinstance(p, Picture) else p for p in t.parts)
                )
                for t in self.turns
            ),
        )

    def with_instruction(self, text: str) -> Prompt:
        """The same pictures under another instruction; a chat keeps only its last user turn."""
        if self.raw:
            raise InvalidRequest(
                "A strategy asks this prompt another question, so it needs the model's chat "
                "template: give plain words or chat messages, not a rendered prompt with "
                "placeholders."
            )
        return Prompt((Turn("user", (*self.pictures, text)),))


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
class Branch:
    """One extra row: the prompt it sees and how its pictures are altered on the way in.

    Args:
        prompt: What the row reads.
        images: PIL -> PIL, before preprocessing.
        pixels: One picture's processor output, float32, same shape.
        features: [N, D] -> [n, D] visual embeddings after the projector.
        tokens: n per picture when ``features`` changes the count; placeholders shrink with it.
        hide: bool [N] image tokens this row never sees.
        life: "prefill" rows are dropped after the first token.
    """

    prompt: Prompt
    images: Edit | None = None
    pixels: Edit | None = None
    features: Edit | None = None
    tokens: int | None = None
    hide: Edit | None = None
    life: Literal["answer", "prefill"] = "answer"

    @property
    def key(self) -> str:
        """Digest of the prompt and every edit; branches with equal keys share a row."""
        edits = (self.images, self.pixels, self.features, self.hide)
        return digest(self.prompt.key, *(e.key if e else "" for e in edits), self.tokens, self.life)


@dataclass(frozen=True)
class Look:
    """A pass of the plain model before the answer, and what to keep of it.

    Args:
        prompt: What it reads.
        hidden: Layers whose leaving residual is kept: Seen.hidden [n, D].
        heads: Layers whose head outputs before o_proj are kept: Seen.heads [n, H, d].
        image: Layers whose last-token weights on image keys are kept: Seen.image [n, H, N_img].
        vision: Layers of the vision tower whose attention is kept, as received by each image token:
            from the CLS token where the tower has one, else the mean over all: Seen.vision
            [n, Hv, N_img].
        vision_heads: "fullwidth" takes the tower's queries and keys as one head: Hv is 1.
        every_token: Keep ``hidden`` for all prompt tokens: Seen.hidden [n, T, D].
        write: Then write this many tokens greedily: Seen.text, Seen.token_ids.
        logits: Keep the raw logits of every written step: Seen.logits [n, V].
    """

    prompt: Prompt
    hidden: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    image: tuple[int, ...] = ()
    vision: tuple[int, ...] = ()
    vision_heads: Literal["split", "fullwidth"] = "split"
    every_token: bool = False
    write: int = 0
    logits: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """Everything asked for; looks of one kind can be taken together."""
        kept = (self.hidden, self.heads, self.image, self.vision, self.vision_heads)
        return (*kept, self.every_token, self.write, self.logits)

    @property
    def key(self) -> str:
        """Digest of the prompt and of everything asked for."""
        return digest(self.prompt.key, self.kind)


@dataclass(frozen=True)
class Seen:
    """What a `Look` saw; tensors are float32 on the CPU."""

    hidden: Tensor | None = None
    heads: Tensor | None = None
    image: Tensor | None = None
    vision: Tensor | None = None
    image_counts: tuple[int, ...] = ()  # image tokens of each picture
    image_mask: Tensor | None = None  # bool [T], with every_token: which tokens are image tokens
    image_spans: tuple[tuple[int, int, int], ...] = ()  # per picture: (first token, rows, columns)
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logits: Tensor | None = None
