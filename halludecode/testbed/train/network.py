"""The untrained model, and the small pieces both stages share.

Architecture, words and processor are the files beside the shipped weights: a CLIP tower on 12-pixel
patches, a two-layer projector and a Llama decoder in LLaVA's form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halludecode.testbed.categories import COLOURS, NAMES

WORD_SCALE = 0.2  # root mean square of the word embeddings at the start
ACROSS, DOWN = ("left", "right"), ("above", "below")  # words for the ends of a row and a column
_ATTENTION = "halludecode_testbed_train"


def untrained(folder: Path, seed: int) -> Any:
    """A model of the shipped architecture with random float32 weights.

    Args:
        folder: Holds `config.json`.
        seed: Of the weights.
    """
    from transformers import AutoConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = _trainable(LlavaForConditionalGeneration(AutoConfig.from_pretrained(folder)))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, WORD_SCALE)
    return model


def trained(folder: Path) -> Any:
    """The model of a folder in float32, to be trained further."""
    from transformers import LlavaForConditionalGeneration

    return _trainable(LlavaForConditionalGeneration.from_pretrained(folder))


def _trainable(model: Any) -> Any:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_ATTENTION, plain_attention)
    AttentionMaskInterface.register(_ATTENTION, eager_mask)
    model = model.float()
    model.set_attn_implementation(_ATTENTION)
    return model


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix: int | None = None,
    gaze: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in three products, whose backward pass is quick on a CPU for heads this small.

    Args:
        module: The attention layer.
        query: [rows, heads, tokens, d]; ``key`` and ``value`` alike.
        key: See ``query``.
        value: See ``query``.
        attention_mask: Added to the scores, or None.
        scaling: Of the scores; None is 1 / sqrt(d).
        prefix: Tokens that all later ones may see; those see their own block beside. The mask is
            then [rows, 1, tokens, prefix + block].
        gaze: `gaze.Gaze` that watches the weights behind the prefix, or None.
        **kwargs: What transformers also hands over.

    Returns:
        [rows, tokens, heads, d], and no weights.
    """
    query = query * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if prefix is None:
        weights = _softmax(query @ key.transpose(-1, -2), attention_mask)
        return (weights @ value).transpose(1, 2).contiguous(), None
    assert attention_mask is not None
    block = attention_mask.shape[-1] - prefix
    first_keys, first_values = key[:, :, :prefix], value[:, :, :prefix]
    scores = query @ first_keys.transpose(-1, -2)
    above = _softmax(scores[:, :, :prefix], attention_mask[:, :, :prefix, :prefix]) @ first_values
    q, k, v = (x[:, :, prefix:].unflatten(2, (-1, block)) for x in (query, key, value))
    own = (q @ k.transpose(-1, -2)).flatten(2, 3)
    weights = torch.cat([scores[:, :, prefix:], own], -1)
    weights = _softmax(weights, attention_mask[:, :, prefix:])
    if gaze is not None:
        gaze.watch(module.layer_idx, weights)
    behind = weights[..., :prefix] @ first_values
    behind = behind + (weights[..., prefix:].unflatten(2, (-1, block)) @ v).flatten(2, 3)
    return torch.cat([above, behind], 2).transpose(1, 2).contiguous(), None


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    with torch.autocast(scores.device.type, enabled=False):  # it would widen the softmax
        return torch.softmax(scores, -1)


def pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """Normalised as by the processor: uint8 [n, 120, 120, 3] -> float32 [n, 3, 120, 120]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def patches(model: Any, images: Tensor) -> Tensor:
    """What the tower says of every patch, [n, 100, width]; the class token is left out."""
    tower_output = model.model.vision_tower(images, output_hidden_states=True)
    return tower_output.hidden_states[-1][:, 1:]


class Words:
    """Ids of the names the vision stage is taught.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._names = [_ids(tokenizer, name) for name in NAMES]
        self._colours = [_ids(tokenizer, name)[0] for name in COLOURS]
        self._places = [[_ids(tokenizer, w)[0] for w in pair] for pair in (ACROSS, DOWN)]

    def categories(self, table: Tensor) -> Tensor:
        """[80, D]: mean embedding of each category's words, from the table [V, D]."""
        return torch.stack([table[ids].mean(0) for ids in self._names])

    def colours(self, table: Tensor) -> Tensor:
        """[6, D]: embedding of each colour's word, from the table [V, D]."""
        return table[self._colours]

    def places(self, table: Tensor) -> Tensor:
        """[2, 2, D]: embeddings of `ACROSS` and `DOWN`, from the table [V, D]."""
        return torch.stack([table[ids] for ids in self._places])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def autocast(device: torch.device) -> Any:
    """bfloat16 products: six to ten times quicker than float32 on the CPUs that know it."""
    return torch.autocast(device.type, torch.bfloat16)


class Trainer:
    """Muon for the matrices, AdamW for the rest, one cosine for both.

    Args:
        named: Parameters by name; a name with "embed" in it or of another rank than 2 goes to
            AdamW.
        rate: Highest learning rate.
        decay: Weight decay.
        steps: Length of the cosine.
        floor: Learning rate at its end, as a share of ``rate``.
    """

    def __init__(
        self,
        parameters: Iterator[tuple[str, nn.Parameter]],
        rate: float,
        decay: float,
        steps: int,
        floor: float = 0.02,
    ) -> None:
        pairs = list(parameters)
        inner = [p for n, p in pairs if p.ndim == 2 and "embed" not in n and "head" not in n]
        chosen = {id(p) for p in inner}
        rest = [p for _, p in pairs if id(p) not in chosen]
        self._all = [p for _, p in pairs]
        self._rate, self._steps, self._floor = rate, steps, floor
        self._parts = [
            torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.97)),
        ]

    def step(self, loss: Tensor, number: int) -> None:
        """One update; ``number`` counts from 0 and sets the learning rate."""
        wave = (1 + math.cos(math.pi * min(1.0, number / self._steps))) / 2
        rate = self._rate * min(1.0, (number + 1) / 40) * (wave + self._floor * (1 - wave))
        for part in self._parts:
            part.zero_grad()
            for group in part.param_groups:
                group["lr"] = rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._all, 1.0)
        for part in self._parts:
            part.step()

    def state(self) -> list[Any]:
        """What a resumed run needs."""
        return [part.state_dict() for part in self._parts]

    def restore(self, state: list[Any]) -> None:
        """Goes on from `state`."""
        for part, saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)
