"""VTI's disturbed picture: most of its patches filled with its mean colour, on processed pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def filled(pixels: Tensor, chosen: Tensor, patch: int) -> Tensor:
    """Pixels whose chosen patches have the mean of all.

    Args:
        pixels: [.., H, W], filled with each plane's own mean.
        chosen: int64 [n], patches in reading order; what is left over at the edges is none.
        patch: Side of a patch in pixels.
    """
    height, width = pixels.shape[-2:]
    rows, columns = height // patch, width // patch
    mask = pixels.new_zeros(rows * columns).bool()
    mask[chosen] = True
    large = mask.view(rows, columns).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    whole = pixels.new_zeros(height, width).bool()
    whole[: rows * patch, : columns * patch] = large
    return pixels.mean((-2, -1), keepdim=True).where(whole, pixels)


def masked(pixels: Tensor, *, ratio: float, patch: int, rng: torch.Generator) -> Tensor:
    """One picture's pixels with a random share of its patches filled.

    Args:
        pixels: Processor output: views [V, 3, H, W], each with patches of its own, or patches in a
            row [N, F], which are filled with the mean over all of them.
        ratio: Share of the patches, rounded down.
        patch: Side of a patch in pixels, where they are not laid out as such.
        rng: Decides which.

    Returns:
        float32, of the same shape.
    """
    import torch

    def some(count: int) -> Tensor:
        return torch.randperm(count, generator=rng)[: int(ratio * count)]

    pixels = pixels.float()
    if pixels.dim() >= 4:
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        return torch.stack([filled(view, some(count), patch) for view in pixels])
    mask = torch.zeros(pixels.shape[-2], dtype=torch.bool)
    mask[some(len(mask))] = True
    return pixels.mean(-2, keepdim=True).where(mask[:, None], pixels)
