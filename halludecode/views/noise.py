r"""VCD's noised picture: forward diffusion on the pixels the processor returns.

.. math:: x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon,
   \quad \bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \quad \epsilon \sim N(0, I)

with 1000 steps and :math:`\beta_t = 10^{-5} + (5 \cdot 10^{-3} - 10^{-5})\,\mathrm{sigmoid}(u_t)`,
``u`` evenly spaced from -6 to 6. Leng et al., "Mitigating Object Hallucinations in Large
Vision-Language Models through Visual Contrastive Decoding", CVPR 2024, arXiv 2311.16922. The paper
prints a constant rate; this is the schedule of its released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STEPS = 1000
BETA_MIN, BETA_MAX = 1e-5, 5e-3


def amplitudes(step: int) -> tuple[float, float]:
    """Amplitude of the picture and of the noise after diffusion step ``step``.

    Args:
        step: 0 (nearly the picture) to 999 (which still keeps 29 % of it).

    Returns:
        ``sqrt(abar)`` and ``sqrt(1 - abar)``, computed in float64.

    Raises:
        InvalidParameter: The step is not in the schedule.
    """
    if not 0 <= step < STEPS:
        raise InvalidParameter(f"noise step {step}: the schedule has steps 0 to {STEPS - 1}.")
    import torch

    grid = torch.linspace(-6, 6, STEPS, dtype=torch.float64)
    beta = BETA_MIN + (BETA_MAX - BETA_MIN) * grid.sigmoid()
    signal_share = float((1 - beta[: step + 1]).prod())
    return signal_share**0.5, (1 - signal_share) ** 0.5


def diffuse(pixels: Tensor, *, step: int, rng: torch.Generator) -> Tensor:
    """Noise one image's pixels as VCD does.

    Args:
        pixels: Processor output of one image, resized and normalised, of any shape.
        step: Diffusion step, 0 to 999; VCD's default is 500.
        rng: CPU generator; it alone decides the noise, whatever device the pixels are on.

    Returns:
        float32, shape and device of ``pixels``.

    Raises:
        InvalidParameter: The step is not in the schedule.
    """
    import torch

    signal, noise = amplitudes(step)
    epsilon = torch.randn(pixels.shape, generator=rng, dtype=torch.float32)
    return signal * pixels.float() + noise * epsilon.to(pixels.device)
