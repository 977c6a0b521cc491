"""What a row of the batch sees: prompts, pictures, and edits that have an identity.

Everything here is immutable and has a digest, because equal rows are computed once, prefixes are
reused across requests, and random edits must draw the same noise wherever they run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image


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
