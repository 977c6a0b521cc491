r"""AGLA's image-text matcher: BLIP tells which patches matter for a question.

With A the attention [heads, tokens, patches] of one cross-attention layer of BLIP's text encoder
and s the "match" logit of its image-text matching head,

.. math:: \mathrm{map}_{j} = \mathrm{mean}_{i}\, \mathrm{mean}_{h}\,
   A_{hij}\, \mathrm{relu}\!\left(\partial s / \partial A_{hij}\right)

over the question's content tokens i (no CLS, no SEP) and without the picture's own CLS patch. An et
al., CVPR 2025, arXiv 2406.12718; the map is that of Selvaraju et al., Grad-CAM, ICCV 2017, as
BLIP's library applies it.

The matcher reads the bare question in the words of that library's captions, see `caption`: without
what follows the last question mark, such as "Please answer yes or no.", which the official scripts
add after it has read. As in that library the matching head reads a text that begins with BLIP's
``[ENC]`` token and ends after 35 tokens. The paper sums over tokens and its code averages: the same
after the scaling that follows.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import isqrt
from threading import Lock
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidModel, InvalidParameter, InvalidRequest
from halludecode.views.masks import agla_mask

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODEL = "Salesforce/blip-itm-large-coco"
LAYER = 6
MAX_TOKENS = 35
MOST_WORDS = 50
MATCH = 1  # the matching head's second logit


def masked(image: Image.Image, *, question: str, model: str = MODEL) -> Image.Image:
    """Blacken what BLIP finds irrelevant for the question.

    Args:
        image: Any PIL picture.
        question: The user's words, without chat template; the matcher reads `caption` of them.
        model: Id or path of a BLIP image-text retrieval model.

    Returns:
        RGB picture of 384 x 384 pixels.

    Raises:
        InvalidModel: The matcher cannot be loaded.
        InvalidRequest: The question has no words.
    """
    grid, similarity = relevance(image, caption(question), model=model)
    return agla_mask(image, relevance=grid, similarity=similarity)


def caption(question: str) -> str:
    """The question as BLIP's captions are written.

    Lower-case, without .!"()*#:;~, at most 50 words, and nothing after the last question mark.
    """
    words = question[: question.rfind("?") + 1] or question
    return " ".join(re.sub(r'[.!"()*#:;~]', " ", words.lower()).split()[:MOST_WORDS])


def relevance(
    image: Image.Image,
    question: str,
    *,
    model: str = MODEL,
    layer: int = LAYER,
    device: str | None = None,
) -> tuple[Tensor, float]:
    """Relevance of each patch for a question, and how well picture and question match.

    Args:
        image: Any PIL picture.
        question: The user's words; the matcher reads the first 35 tokens.
        model: Id or path of a BLIP image-text retrieval model.
        layer: Layer of the text encoder whose cross-attention is read.
        device: Where the matcher runs; None takes a GPU if there is one.

    Returns:
        float32 ``[h, w]`` on the CPU, >= 0 (24 x 24 for BLIP at 384 pixels), and the cosine
        similarity of the contrastive embeddings, in [-1, 1].

    Raises:
        InvalidModel: The matcher cannot be loaded.
        InvalidParameter: The matcher has no such layer.
        InvalidRequest: The question has no words.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode(False):  # the caller may be in it; a gradient cannot
        blip, processor, lock = _matcher(model, device)
        read = _layer(blip, layer, model)
        inputs = _inputs(processor, image, question).to(device)
        similarity = _similarity(blip, inputs)
        inputs["input_ids"][:, 0] = _encoder_token(blip, processor)
        with lock:  # hooks see every forward of the model, another thread's too
            attention, gradient = _match_gradient(blip, read, inputs)
        patches = gradcam(attention[:, 1:-1, 1:], gradient[:, 1:-1, 1:]).float().cpu()
    side = isqrt(patches.numel())
    return patches.reshape(side, side), similarity


def gradcam(attention: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of an attention map: ``[heads, tokens, patches]`` twice -> ``[patches]``."""
    return (attention * gradient.clamp(min=0)).mean(0).mean(0)


def _layer(blip: Any, layer: int, model: str) -> Any:
    layers = blip.text_encoder.encoder.layer
    if not 0 <= layer < len(layers):
        raise InvalidParameter(f"layer={layer}: the text encoder of {model} has {len(layers)}.")
    return layers[layer]


def _inputs(processor: Any, image: Image.Image, question: str) -> Any:
    inputs = processor(
        images=image.convert("RGB"),
        text=question,
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    if inputs["input_ids"].shape[1] < 3:  # [CLS], [SEP]
        raise InvalidRequest("BLIP needs a question and this one has no words; use matcher=self.")
    return inputs


def _similarity(blip: Any, inputs: Any) -> float:
    import torch

    with torch.no_grad():
        score = float(blip(**inputs, use_itm_head=False).itm_score[0, 0])
    return max(-1.0, min(1.0, score))


def _match_gradient(blip: Any, layer: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """Cross-attention ``[heads, tokens, 1 + patches]`` and the match logit's gradient in it."""
    import torch

    caught = {}

    def begin_graph(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # All weights are frozen: the graph starts here, and nothing below this layer is recorded.
        return (args[0].detach().requires_grad_(), *args[1:])

    def keep(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        caught["weights"] = output[1]

    hooks = (
        layer.crossattention.register_forward_pre_hook(begin_graph),
        layer.crossattention.self.register_forward_hook(keep),
    )
    try:
        with torch.enable_grad():
            match = blip(**inputs, use_itm_head=True).itm_score[0, MATCH]
            (gradient,) = torch.autograd.grad(match, caught["weights"])
    finally:
        for hook in hooks:
            hook.remove()
    return caught["weights"][0].detach(), gradient[0]


def _encoder_token(blip: Any, processor: Any) -> int:
    """Id of ``[ENC]``: BLIP adds [DEC], [ENC] to BERT's words; its HF tokenizer lacks both."""
    tokenizer = processor.tokenizer
    named = tokenizer.get_vocab().get("[ENC]")
    if named is not None:
        return int(named)
    rows = blip.text_encoder.get_input_embeddings().num_embeddings
    return rows - 1 if rows == len(tokenizer) + 2 else int(tokenizer.cls_token_id)


@lru_cache(maxsize=1)
def _matcher(model: str, device: str) -> tuple[Any, Any, Lock]:
    """The matcher, weights frozen, its processor and lock; the last one asked for stays loaded."""
    import torch
    from transformers import BlipForImageTextRetrieval, BlipProcessor

    try:
        processor = BlipProcessor.from_pretrained(model)
        blip, report = BlipForImageTextRetrieval.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidModel(
            f"The matcher {model!r} cannot be loaded ({reason}); "
            "download it, give the path of a BLIP image-text retrieval model, or use matcher=self."
        ) from error
    if missing := sorted(report["missing_keys"]):
        # transformers would fill the gaps with random weights and only log it
        raise InvalidModel(
            f"{model!r} is no BLIP image-text retrieval model: it lacks {missing[0]!r} and "
            f"{len(missing) - 1} more weights; give another model or use matcher=self."
        )
    return blip.eval().requires_grad_(False).to(device), processor, Lock()
