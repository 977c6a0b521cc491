"""What a model looks at of its own words when it is about to name a thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.activations import ActivationRequest
from halludecode.core.calibration import Calibration
from halludecode.core.errors import InvalidParameter
from halludecode.core.model_info import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor


def paid_to_written(cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
    """AdaIAT's averages.

    Args:
        cal: Its labelled captions are read.
        m: The model's numbers.

    Returns:
        "real" and "hallucinated", float32 [L, H]: attention to a written token, the mean over those
        written so far and over all names of that kind with a word before them.

    Raises:
        InvalidParameter: There is no name of a kind.
    """
    import torch

    kept: dict[str, list[Tensor]] = {"real": [], "hallucinated": []}
    for prompt, told in cal.track(cal.labelled):
        asked = cal.activations(ActivationRequest(prompt, keys=(0,))).keys
        for kind, paid in kept.items():
            for start in getattr(told, kind):
                before = told.text[:start].rstrip()
                if before:
                    begun = ActivationRequest(prompt.answered(before), keys=(*range(m.num_layers),))
                    weights = cal.activations(begun).keys
                    paid.append(weights[..., asked.shape[-1] :].mean(-1))  # type: ignore[index, union-attr]
    few = [kind for kind, paid in kept.items() if not paid]
    if few:
        raise InvalidParameter(
            f"The captions name no {few[0]} thing after their first word; give more of them "
            "(--limit)."
        )
    cal.notes.append(", ".join(f"{len(paid)} {kind} names" for kind, paid in kept.items()))
    return {kind: torch.stack(paid).mean(0) for kind, paid in kept.items()}
