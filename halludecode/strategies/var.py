"""VAR: give attention spent on sinks back to the image (Kang et al., ICLR 2025, arXiv:2503.03321).

    phi(x) = max_{j in D_sink} |x_j| / rms(x) >= tau                 (sink tokens, eq. 4)
    heads with  m_v >= min_mass  and  r = m_{v, not sink} / m_v >= rho   (image-centric heads)
    w_sink *= 1 - p,   w_image *= 1 + p * m_sink / m_{v, not sink}        (redistribution)

p is the moved fraction as in the paper; the official code treats p as the kept one and inverts rho.
Its last layer is edited by accident and its state leaks between samples; here layers 2..L-2 are
edited. D_sink is found on the model itself (`core.sinks`): dimensions massive at the first token
or at few image tokens, which must be attended to far above their share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from halludecode.core.sinks import is_sink, survey, threshold
from halludecode.core.strategy import Calibration, ModelInfo, Paper, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PAPER = Paper(
    arxiv="2503.03321",
    title="See What You Are Told: Visual Attention Sink in Large Multimodal Models",
    authors="Kang, Seil and Kim, Jinyeong and Kim, Junhyeok and Hwang, Seong Jae",
    venue="ICLR",
    year=2025,
)


@strategy("var", paper=PAPER, off={"p": 0.0})
class VAR(Strategy):
    """Move attention from sink tokens to the rest of the image, in heads that look."""

    p: float = param(0.6, "fraction of the sinks' attention that is moved", ge=0, le=1)
    rho: float = param(0.5, "least non-sink share of a head's image attention", ge=0, le=1)
    min_mass: float = param(0.2, "least image attention of a head", ge=0, le=1)
    tau: float | None = param(None, "sink threshold; None is 20 * sqrt(hidden size / 4096)", gt=0)
    dims: tuple[int, ...] | None = param(None, "sink dimensions; None finds them on the model")

    artifact = "optional"
    artifact_params = ("tau",)

    def layers(self, m: ModelInfo) -> Iterable[int]:
        """Layers 2..L-2, the last excluded (paper)."""
        return range(2, m.num_layers - 1)

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """Sink dimensions of this model, and a sentence on what they do."""
        import torch

        sinks = survey(cal.activations, cal.samples, m, self.threshold(m), cal.track)
        cal.notes.append(sinks.verdict)
        return {"dims": torch.tensor(sinks.dims, dtype=torch.int64)}

    def threshold(self, m: ModelInfo) -> float:
        """Phi is at most the root of the hidden size; the published 20 at 4096 scales with it."""
        return threshold(m, self.tau)

    def sinks(self, m: ModelInfo) -> tuple[int, ...]:
        """Given dimensions, else those found on the model, else none."""
        if self.dims is not None:
            return self.dims
        return tuple(int(dim) for dim in (m.artifact["dims"] if m.artifact else ()))

    def attend(self, a: Attention) -> None:
        """Choose heads, then move attention; mass is conserved in every row."""
        sink = a.token_mask("sink", partial(is_sink, dims=self.sinks(a.m), tau=self.threshold(a.m)))
        fresh = a.image & ~sink
        in_image, in_fresh, in_sinks = a.mass(a.image, fresh, sink, queries="after_image")
        chosen = (in_image >= self.min_mass) & (in_fresh >= self.rho * in_image)
        chosen = chosen & (in_fresh > 0) & (in_image > in_fresh)  # some of it is stuck in a sink
        more = 1 + self.p * in_sinks / in_fresh
        a.scale_weights(sink, 1 - self.p, where=chosen, queries="after_image")
        a.scale_weights(fresh, more, where=chosen, queries="after_image")
