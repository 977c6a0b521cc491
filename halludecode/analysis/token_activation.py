"""Token activation maps: which image tokens speak for a written token (Li et al., ICCV 2025, TAM).

    a_i = relu(h_i . W_c)   at image tokens i, for the token c
    a <- relu(a - s I),   I = sum of w_k a^(k),  w_k ~ relu(h_k . W_c),  over earlier other words k
    then each 3 x 3 window's sorted values, weighted about the middle one by a Gaussian

arXiv:2506.23270, xmed-lab/TAM. h are the model's last hidden states, W its LM head; s is the least
squares factor. It explains and edits nothing. One more pass reads prompt and answer together; the
official code keeps the logits of every step. There the prompt is the user's words alone, here all
tokens after the picture; there words are compared as the tokenizer writes them, here as ids; its
maps are rounded to 256 steps. A window of equal values, where its sigma is 0, keeps its value here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halludecode.core.activations import ActivationRequest
from halludecode.core.errors import InvalidRequest, UnsupportedStrategy
from halludecode.core.prompt import Prompt, Turn
from halludecode.engines.api import Choice, Request
from halludecode.engines.base import local
from halludecode.engines.inputs.rows import seen_spans
from halludecode.models.feed_forward import final_norm

TINY = 1e-8


def without_interference(own: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Float [N]: a token's map without what earlier tokens' maps explain of it.

    Args:
        own: float [N].
        others: float [K, N], maps of earlier tokens.
        weights: float [K], how much each of them speaks of this token, at least 0.
    """
    own, others, weights = (np.asarray(each) for each in (own, others, weights))
    common = (weights / (weights.sum() + TINY)) @ others
    norm = common @ common
    scale = own @ common / norm if norm > 0 else 0.0
    return np.clip(own - scale * common, 0, None)


def rank_filtered(grid: np.ndarray) -> np.ndarray:
    """Float [rows, columns]: every 3 x 3 window by rank; borders are mirrored."""
    grid = np.asarray(grid, dtype=np.float64)
    padded = np.pad(grid, 1, mode="reflect" if min(grid.shape) > 1 else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    ranked = np.sort(windows.reshape(*grid.shape, 9), -1)
    mean = ranked.mean(-1)
    sigma = ranked.std(-1) / np.where(mean > 0, mean, 1)
    weights = np.exp(-((np.arange(9) - 4) ** 2) / (2 * np.maximum(sigma, TINY)[..., None] ** 2))
    filtered = (ranked * weights).sum(-1) / weights.sum(-1)
    return np.where(mean > 0, filtered, 0)


def token_maps(logits: np.ndarray, image: np.ndarray, ids: Sequence[int], first: int) -> np.ndarray:
    """Float [answer tokens, N_img]: maps before the filter, in 0..1 beside the words' own values.

    Args:
        logits: float [T, C], of every place of prompt and answer for each text token's id, in the
            order of the tokens.
        image: bool [T], image tokens.
        ids: The C text tokens behind the picture: the prompt's, then the answer's.
        first: How many of them are the prompt's.
    """
    speaking = np.clip(logits, 0, None)
    start = len(image) - len(ids)  # a prompt token speaks at its place, a written one where chosen
    places = [start + i - (i >= first) for i in range(len(ids))]
    raw = speaking[image].T  # [C, N_img]
    made: list[np.ndarray] = []
    for j in range(first, len(ids)):
        own, said = raw[j], speaking[places[:j], j]
        others = [k for k in range(j) if ids[k] != ids[j]]
        if others:
            own = without_interference(own, raw[others], said[others])
        both = np.concatenate([own, said])
        made.append((own - both.min()) / max(both.max() - both.min(), TINY))
    return np.stack(made)


def maps_of(engine: Any, request: Request, choice: Choice) -> list[tuple[np.ndarray, ...]]:
    """Per written token, a float32 [rows, columns] map for each picture.

    Raises:
        UnsupportedStrategy: The engine keeps its LM head to itself, or image tokens form no raster.
        InvalidRequest: The answer does not read as it was written.
    """
    engine = local(engine)
    if engine.name != "hf":
        raise UnsupportedStrategy(
            "Token activation maps need the LM head, which vLLM's workers keep; use engine='hf'."
        )
    if "raster" in engine.family.lacks:
        why = engine.family.lacks["raster"]
        raise UnsupportedStrategy(f"There are no token activation maps: {why}.")
    prompt = answered(engine.prompt_of(request), choice.text)
    row = engine.row_builder.activation_row(ActivationRequest(prompt))
    ids = row.input_ids.tolist()
    written = [t for t in choice.token_ids if t not in engine.end_tokens]
    if not written or ids[-len(written) :] != written:
        raise InvalidRequest(
            "The answer's words are other tokens when they are read again, so there are no token "
            "activation maps of it."
        )
    image = row.input_ids == engine.inputs.image_token
    last = int(image.nonzero()[-1]) + 1
    logits = _logits(engine, prompt, ids[last:])
    made = token_maps(logits, image.numpy(), ids[last:], len(ids) - last - len(written))
    return [
        tuple(
            rank_filtered(each[at : at + rows * columns].reshape(rows, columns)).astype(np.float32)
            for at, rows, columns in seen_spans(row)
        )
        for each in made
    ]


def answered(prompt: Prompt, text: str) -> Prompt:
    """The prompt with the answer begun."""
    return replace(prompt, turns=(*prompt.turns, Turn("assistant", (text,))), open_ended=True)


@torch.no_grad()
def _logits(engine: Any, prompt: Prompt, ids: Sequence[int]) -> np.ndarray:
    """float32 [T, C] of a pass, for some tokens of the vocabulary alone."""
    top = engine.model_info.num_layers - 1
    kept = engine.activations(ActivationRequest(prompt, hidden=(top,), every_token=True))
    model, family = engine.model, engine.family
    head = model.get_output_embeddings()
    parent = model.get_submodule(family.layers.rpartition(".")[0])
    states: Tensor = final_norm(parent)(kept.hidden[0].to(head.weight))
    classes = torch.tensor(list(ids), device=head.weight.device)
    out = states @ head.weight[classes].T
    if getattr(head, "bias", None) is not None:
        out = out + head.bias[classes]
    return out.float().cpu().numpy()
