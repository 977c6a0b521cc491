"""What sets one family of models apart: the columns of the table in `families.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from halludecode.models.image_layout import Span

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelFamily:
    """What an engine must know of one family.

    Args:
        placeholder: What stands for one picture in a rendered prompt.
        layers: Dotted path from the model to its decoder layers.
        turn: A user turn and the start of the answer, for checkpoints without a chat template;
            ``{images}`` are the placeholders.
        span: ``(pixel inputs of one picture, its token count, config) -> Span`` of its overview.
        view: ``(pixel inputs of one picture, image processor) -> [3, H, W]``, normalised pixels to
            show.
        patches: ``(values [.., views, Hv, patches] of one picture, pixel inputs, config) ->
            [.., Hv, tokens]``: values of the vision tower's patches laid onto image tokens, the
            mean where a token is made of several, 0 where it is made of none; None where tokens do
            not stand for patches.
        frame: What a placeholder becomes before the words are tokenized, with one image token in
            it; "" for families whose processors only repeat the image token.
        leading: Whether the words hold no placeholder: the tokens of the one picture come first,
            before the begin token.
        encoder_words: Inputs of the picture encoder that the processor makes of the prompt's words.
        unused: Arguments of the forward without a default, which pictures already encoded replace.
        number: What the processor writes before a picture that is the n-th of its prompt, from 0.
        strip: Whether patches of all pictures lie side by side, ``pixel_values`` [1, 3, p, n p].
        nested: Whether the picture encoder takes views as [1, views, ..].
        packed: Whether the model wants picture features as one tensor instead of a list.
        projector: Dotted path to what the forward itself applies to the encoder's output, so that
            features are handed to it among the words' embeddings; "" where the encoder ends in it.
        mrope: Whether the model makes three-dimensional positions (`get_rope_index`).
        mutual: Which tokens see each other, told by ``token_type_ids``: those of a "picture", or of
            the whole "prompt"; "" for none. "near" is a picture's in layers with a sliding window,
            told by ``mm_token_type_ids`` and heeded where the config wants it.
        closing: What the processor writes after the words; the begin token then stands between the
            pictures and the words.
        special: Whether the tokenizer may put tokens of its own around the words.
        origin: Position of the first token.
        unshared: Why the KV of a picture cannot serve several questions; "" where it can.
        capped: Whether the model bounds its logits (``final_logit_softcapping``).
        apart: Whether each of several pictures in a prompt is one view, where a picture alone is
            cut into views.
        least: Fewest image tokens of a picture that the model's own code can read.
        lacks: Need of a strategy -> why this family cannot serve it.
    """

    placeholder: str
    layers: str
    turn: str
    span: Callable[[Mapping[str, Any], int, Any], Span]
    view: Callable[[Mapping[str, Any], Any], Tensor]
    patches: Callable[[Tensor, Mapping[str, Any], Any], Tensor] | None = None
    frame: str = ""
    leading: bool = False
    encoder_words: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    number: str = ""
    strip: bool = False
    nested: bool = False
    packed: bool = False
    projector: str = ""
    mrope: bool = False
    mutual: Literal["", "picture", "near", "prompt"] = ""
    closing: str = ""
    special: bool = True
    origin: int = 0
    unshared: str = ""
    capped: bool = False
    apart: bool = False
    least: int = 1
    lacks: Mapping[str, str] = field(default_factory=dict)


def switch_to_try(error: Exception, family: ModelFamily, *, encoding: bool) -> str:
    """The switch of a family's row that an error of the model's own code speaks for.

    Args:
        error: What the model raised.
        family: The row as it is.
        encoding: Whether it was given a picture; else features, in a forward that also runs
            strategies, whose errors must not be taken for the model's.

    Returns:
        ``packed=True`` and the like; "" where nothing is known.
    """
    text = str(error)
    if encoding:
        misshapen = isinstance(error, IndexError) or "values to unpack (expected" in text
        return f"nested={not family.nested}" if misshapen else ""
    if "'list' object has no attribute 'to'" in text and not family.packed:
        return "packed=True"
    if "must be tuple of Tensors, not Tensor" in text and family.packed:
        return "packed=False"
    return ""


def decoder_layers(model: Any, family: ModelFamily) -> Any:
    """The decoder layers of a loaded model."""
    layers = model
    for name in family.layers.split("."):
        layers = getattr(layers, name)
    return layers
