"""In a worker: what a pass before the answer left behind, and how it becomes `Activations`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halludecode.core.activations import Activations
from halludecode.core.errors import HookNeverFired

Pieces = dict[int, Tensor]  # by the token that each begins with


@dataclass
class Captured:
    """What one pass kept so far; a row that runs again after preemption writes it anew."""

    hidden: dict[int, Pieces] = field(default_factory=dict)  # layer: [t, D]
    heads: dict[int, Tensor] = field(default_factory=dict)  # layer: [H, d]
    image: dict[int, Pieces] = field(default_factory=dict)  # layer: [H, t, N_img]
    keys: dict[int, Tensor] = field(default_factory=dict)  # layer: [H, T]
    logits: dict[int, Tensor] = field(default_factory=dict)  # step: [V]
    vision: dict[int, Tensor] = field(default_factory=dict)  # picture: [layers, Hv, N]
    tower: dict[int, Tensor] = field(default_factory=dict)  # picture: [layers, P, Dv]


def keep_piece(kept: dict[int, Pieces], layer: int, start: int, piece: Tensor) -> None:
    """What a layer gave from token ``start`` on; what is behind it is of an earlier run."""
    pieces = kept.setdefault(layer, {})
    for later in [each for each in pieces if each > start]:
        del pieces[later]
    pieces[start] = piece


def activations_of(captured: Captured, about: Mapping[str, Any]) -> Activations:
    """What a strategy's `prepare` gets of one pass.

    Args:
        captured: What this worker kept of it.
        about: What the front end knows of it: capture, counts, spans, text, token_ids, pieces,
            mask, word_logits.

    Raises:
        HookNeverFired: The model did not show something that was to be kept.
    """
    capture = about["capture"]
    steps = [captured.logits[n] for n in sorted(captured.logits)][: len(about["token_ids"])]
    vision = [captured.vision[n] for n in sorted(captured.vision)]
    return Activations(
        hidden=_stacked("hidden", capture, _whole_hidden(captured, capture)),
        heads=_stacked("heads", capture, captured.heads),
        image=_stacked("image", capture, _whole_image(captured, capture)),
        keys=_stacked("keys", capture, captured.keys),
        vision=torch.cat(vision, -1) if vision else None,
        tower=torch.stack([*captured.tower.values()]).mean(0) if captured.tower else None,
        image_counts=tuple(about["counts"]),
        image_mask=torch.tensor(about["mask"]) if about["mask"] is not None else None,
        image_spans=tuple(tuple(span) for span in about["spans"]),
        text=about["text"],
        token_ids=tuple(about["token_ids"]),
        pieces=tuple(about["pieces"]),
        logits=torch.stack(steps) if steps and capture["logits"] else None,
        word_logits=about["word_logits"],
    )


def _whole_hidden(captured: Captured, capture: Mapping[str, Any]) -> dict[int, Tensor]:
    """By layer, the residuals of all pieces a prompt was computed in; [D] of the last token."""
    whole = {layer: _joined(pieces, 0) for layer, pieces in captured.hidden.items()}
    return whole if capture["every_token"] else {layer: x[-1] for layer, x in whole.items()}


def _whole_image(captured: Captured, capture: Mapping[str, Any]) -> dict[int, Tensor]:
    """By layer, [H, N_img] of the prompt's last token, or [H, answered, N_img]."""
    whole = {layer: _joined(pieces, 1) for layer, pieces in captured.image.items()}
    return whole if capture["answered"] else {layer: x[:, 0] for layer, x in whole.items()}


def _joined(pieces: Pieces, dim: int) -> Tensor:
    return torch.cat([pieces[start] for start in sorted(pieces)], dim)


def _stacked(
    name: str, capture: Mapping[str, Any], by_layer: Mapping[int, Tensor]
) -> Tensor | None:
    silent = [layer for layer in capture[name] if layer not in by_layer]
    if silent:
        raise HookNeverFired(
            f"A pass before the answer kept nothing ({name}) of layer {silent[0]}."
        )
    return torch.stack([by_layer[layer] for layer in capture[name]]) if capture[name] else None
