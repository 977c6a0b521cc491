"""Passes of the plain model before the answer: what to keep of one, and what was kept.

Shapes: n layers or tokens asked for, T prompt tokens, H query heads (Hv of the vision tower), D
hidden size, d head size, V vocabulary size, N_img image tokens, P places of a view
in the vision tower, Dv its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from halludecode.core.branch import Edit
from halludecode.core.prompt import Prompt, digest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ActivationRequest:
    """A pass of the plain model before the answer, and what to keep of it.

    Args:
        prompt: What it reads.
        hidden: Layers whose leaving residual is kept: Activations.hidden [n, D].
        heads: Layers whose head outputs before o_proj are kept: Activations.heads [n, H, d].
        image: Layers whose last-token weights on image keys are kept: Activations.image
            [n, H, N_img].
        keys: Layers whose last-token weights on all keys are kept: Activations.keys [n, H, T].
        vision: Layers of the vision tower whose attention is kept, as received by each image token:
            from the CLS token where the tower has one, else the mean over all: Activations.vision
            [n, Hv, N_img].
        vision_heads: "fullwidth" takes the tower's queries and keys as one head: Hv is 1.
        tower: Layers of the vision tower whose leaving state is kept, the mean over all views:
            Activations.tower [n, P, Dv], see `VisionInfo.places`; P is 1, the mean over a picture's
            tokens, where views differ in theirs.
        pixels: Edit of the processor's output, as a `Branch` has it.
        every_token: Keep ``hidden`` for all prompt tokens: Activations.hidden [n, T, D]; and
            ``image`` for those of ``answered``: Activations.image [n, H, answered, N_img].
        write: Then write this many tokens greedily: Activations.text, Activations.token_ids; and
            Activations.pieces, those of ``answered`` before them.
        logits: Keep the raw logits of every written step: Activations.logits [n, V].
        words: Words whose logit as the next token is kept: Activations.word_logits.
        answered: Token ids of an answer's beginning, read after the prompt.
    """

    prompt: Prompt
    hidden: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    image: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    vision: tuple[int, ...] = ()
    vision_heads: Literal["split", "fullwidth"] = "split"
    tower: tuple[int, ...] = ()
    pixels: Edit | None = None
    every_token: bool = False
    write: int = 0
    logits: bool = False
    words: tuple[str, ...] = ()
    answered: tuple[int, ...] = ()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Everything asked for; requests of one kind can run together."""
        kept = (self.hidden, self.heads, self.image, self.keys)
        kept += (self.vision, self.vision_heads, self.tower)
        each = (self.every_token, self.each_answered)
        return (*kept, *each, self.write, self.logits, self.words)

    @property
    def each_answered(self) -> int:
        """Tokens of ``answered`` whose weights on image keys are kept one by one."""
        return len(self.answered) if self.every_token and self.image else 0

    @property
    def tower_alone(self) -> bool:
        """Whether the vision tower alone is asked about, which reads no words."""
        rest = replace(self, vision=(), tower=(), pixels=None)
        plain = ActivationRequest(self.prompt, vision_heads=self.vision_heads)
        return bool(self.vision or self.tower) and rest == plain

    @property
    def key(self) -> str:
        """Digest of what the model reads of the prompt and of everything asked for."""
        read = [p.key for p in self.prompt.pictures] if self.tower_alone else self.prompt.key
        return digest(read, self.kind, self.answered, self.pixels.key if self.pixels else "")


@dataclass(frozen=True)
class Activations:
    """What the pass of an `ActivationRequest` kept; tensors are float32 on the CPU."""

    hidden: Tensor | None = None
    heads: Tensor | None = None
    image: Tensor | None = None
    keys: Tensor | None = None
    vision: Tensor | None = None
    tower: Tensor | None = None
    image_counts: tuple[int, ...] = ()  # image tokens of each picture
    image_mask: Tensor | None = None  # bool [T], with every_token: which tokens are image tokens
    image_spans: tuple[tuple[int, int, int], ...] = ()  # per picture: (first token, rows, columns)
    text: str = ""
    token_ids: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()  # those answered and written, as the vocabulary has them
    logits: Tensor | None = None
    # of each word's usual spellings the largest; no entry for one that the vocabulary lacks
    word_logits: Mapping[str, float] = field(default_factory=dict[str, float])
