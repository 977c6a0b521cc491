"""Directions of the residual stream and of the vision tower's states, found on pairs of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Edit
from halludecode.core.calibration import Calibration, CaptionPair
from halludecode.core.model_info import ModelInfo
from halludecode.core.prompt import Prompt
from halludecode.core.residual import leaned
from halludecode.views.patches import masked
from halludecode.views.tower import tower_of

if TYPE_CHECKING:
    from torch import Tensor


def axis(shifts: Tensor) -> Tensor:
    """[.., F] of shifts [.., n, F]: their mean and the first principal axis, of length 1.

    The axis points where the shift that lies farthest along it does; shifts that are all alike have
    none.
    """
    import torch

    mean = shifts.mean(-2, keepdim=True)
    centred = shifts - mean
    scores = torch.linalg.eigh(centred @ centred.mT).eigenvectors[..., -1:]  # [.., n, 1]
    farthest = scores.gather(-2, scores.abs().argmax(-2, keepdim=True))
    along = (scores * farthest.sign()).mT @ centred
    return (mean + along / along.norm(dim=-1, keepdim=True).clamp_min(1e-12)).squeeze(-2)


def found(
    cal: Calibration, m: ModelInfo, trials: int, ratio: float, patch: int
) -> Mapping[str, Tensor]:
    """VTI's artifact.

    Args:
        cal: Its pairs are read.
        m: The model's numbers.
        trials: Masked copies of each picture.
        ratio: Share of their patches that is masked.
        patch: Side of a patch in pixels.

    Returns:
        "text" float32 [L, D], from hallucinated captions to true ones; "vision" float32
        [tower layers, P, Dv], from pictures to what masked copies of them have in common.
    """
    import torch

    pairs = cal.track(cal.pairs)
    both = [
        (_caption_shift(cal, prompt, pair, m), _tower_shift(cal, prompt, m, trials, ratio, patch))
        for prompt, pair in pairs
    ]
    text, seen = (torch.stack(shifts) for shifts in zip(*both, strict=True))
    places = seen.permute(2, 0, 1, 3)  # [P, pairs, tower layers, Dv]
    cal.notes.append(f"{len(both)} pictures with a true and a hallucinated caption")
    return {
        "text": axis(text.flatten(1)).view(text.shape[1:]),
        "vision": axis(places.flatten(2)).view(places[:, 0].shape).transpose(0, 1),
    }


def _caption_shift(cal: Calibration, prompt: Prompt, pair: CaptionPair, m: ModelInfo) -> Tensor:
    """[L, D]: last tokens of a true caption, less those of a hallucinated one."""
    layers = (*range(m.num_layers),)
    ends = [
        cal.activations(ActivationRequest(prompt.answered(words), hidden=layers)).hidden
        for words in pair
    ]
    return ends[0] - ends[1]  # type: ignore[operator]


def _tower_shift(
    cal: Calibration, prompt: Prompt, m: ModelInfo, trials: int, ratio: float, patch: int
) -> Tensor:
    """[tower layers, P, Dv]: the mean of masked copies of a prompt's pictures, less theirs."""
    layers = (*range(tower_of(m).read_layers),)

    def states(edit: Edit | None) -> Tensor:
        return cal.activations(ActivationRequest(prompt, tower=layers, pixels=edit)).tower  # type: ignore[return-value]

    known = (("ratio", ratio), ("patch", patch))
    copies = states(Edit(masked, known, draw=0))
    for draw in range(1, trials):
        copies = copies + states(Edit(masked, known, draw=draw))
    return copies / trials - states(None)


def leaning(
    x: Tensor, *, layer: int, layers: int, artifact: Mapping[str, Tensor], lam: float
) -> Tensor:
    """[.., T, Dv]: an MLP's output inside the tower, nearer to its layer's direction."""
    return leaned(x, artifact["vision"][layer].to(x.device), lam)
