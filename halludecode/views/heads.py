"""Which attention heads gain by an edit: ZeroTuning's profiling (arXiv:2505.11739).

One strength is tried in every head alone. Heads whose score rises are up-effective, heads whose
score falls down-effective; the larger kind is kept and its strength searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.strategy import Calibration, Facts

PROBE = 4.0
UP, DOWN = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0), (0.7, 0.5, 0.3, 0.2, 0.1)


def profile(
    cal: Calibration, m: Facts, score: Callable[[float, Tensor], float]
) -> Mapping[str, Tensor]:
    """Find heads and strength.

    Args:
        cal: Shows progress, and takes a note of what was found.
        m: The model's numbers.
        score: ``(gamma, heads bool [L, H]) -> float``, higher is better; gamma 1 is the plain
            model.

    Returns:
        "heads": bool [L, H]; "gamma": float32 [], 1 where nothing beats the plain model; "gain":
        float32 [L, H], what gamma 4 did in each head alone.
    """
    import torch

    one = list(torch.eye(m.L * m.H, dtype=torch.bool).reshape(-1, m.L, m.H))
    plain = score(1.0, one[0])
    gain = torch.tensor([score(PROBE, head) - plain for head in cal.track(one)])
    gain = gain.reshape(m.L, m.H)
    up = bool((gain > 0).sum() >= (gain < 0).sum())
    heads = gain > 0 if up else gain < 0
    tried = {1.0: plain}
    if heads.any():
        tried |= {g: score(g, heads) for g in cal.track(UP if up else DOWN)}
    gamma = max(tried, key=lambda g: (tried[g], -abs(math.log(g))))
    kind = "accuracy" if cal.supervised else "minus mean entropy"
    cal.notes.append(
        f"{int(heads.sum())} of {heads.numel()} heads are {'up' if up else 'down'}-effective; "
        f"{kind} {plain:.4f} -> {tried[gamma]:.4f} at gamma {gamma:g}"
    )
    return {"heads": heads, "gamma": torch.tensor(gamma), "gain": gain}
