"""Attention sinks: tokens that carry massive activations in a few fixed dimensions.

    phi(x) = max_{j in dims} |x_j| / sqrt(mean(x^2) + 1e-6)        (arXiv:2503.03321, eq. 4)

The dimensions belong to the fine-tuned language model, so they are found on the model itself. A
dimension is a sink's if it is massive, |x_j| / rms(x) >= tau, in most middle layers either at the
first token of most prompts or at an image token of most pictures; if it is rare among image tokens
(one that most of them share marks pictures, not sinks); and if the image tokens that carry it
receive far more of the image attention than their share. The paper reads its dimensions off the
first token and checks neither rarity nor attention; both matter for models without sinks.

Shapes: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import ActivationRequest, Activations
    from halludecode.core.model_info import ModelInfo
    from halludecode.core.prompt import Prompt

MOST_PROMPTS = 0.9  # share of prompts (of pictures) in which a dimension must be massive
MOST_LAYERS = 0.5  # share of middle layers
RARE = 0.5  # share of image tokens above which a dimension marks the modality
FAR_MORE = 3.0  # times their share of image tokens is what sinks get of image attention
MOST_DIMS = 3
CLASSES = ("first", "image", "text")  # of tokens; "text" is what is neither


def magnitude(x: Tensor) -> Tensor:
    """|x| over the weightless root mean square, float32 [..., D]; at most sqrt(D)."""
    x = x.float()
    return x.abs() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def is_sink(x: Tensor, *, dims: tuple[int, ...], tau: float) -> Tensor:
    """Bool [T]: phi(x) >= tau for residuals x [T, D]; no dims, no sinks."""
    if not dims:
        return x.new_zeros(x.shape[:-1]).bool()
    return magnitude(x)[..., list(dims)].amax(-1) >= tau


def threshold(m: ModelInfo, tau: float | None = None) -> float:
    """``tau``, else 20 at width 4096, scaled as phi's bound sqrt(D) is."""
    return tau if tau is not None else 20 * (m.hidden_size / 4096) ** 0.5


@dataclass(frozen=True)
class Survey:
    """What was found on a model.

    Args:
        dims: Sink dimensions in ascending order; empty where there are none.
        tau: Threshold of phi.
        layers: Layers whose entering residual and attention were read.
        middle: Those that decide.
        samples: Prompts read.
        pictures: Those with image tokens.
        phi: float32 [layers, 3, 2]: mean and largest phi of each of `CLASSES`, over ``dims``, or
            over all dimensions where there are none; NaN for a class without tokens.
        flagged: float32 [layers], share of image tokens that are sinks.
        taken: float32 [layers], share of the image attention of a prompt's last token that goes to
            them, over all heads.
        refused: Dimension -> why it is no sink's, for those that are massive.
    """

    dims: tuple[int, ...]
    tau: float
    layers: tuple[int, ...]
    middle: tuple[int, ...]
    samples: int
    pictures: int
    phi: Tensor
    flagged: Tensor
    taken: Tensor
    refused: Mapping[int, str] = field(default_factory=dict[int, str])

    def share(self, values: Tensor) -> float:
        """Mean of one of the shares over the middle layers."""
        chosen = [float(values[self.layers.index(layer)]) for layer in self.middle]
        return sum(chosen) / len(chosen) if chosen else 0.0

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        dims = "{" + ", ".join(map(str, self.dims)) + "}"
        flagged, taken = self.share(self.flagged), self.share(self.taken)
        if self.dims and flagged:
            return (
                f"sinks: dims {dims}, {flagged:.1%} of visual tokens take {taken:.0%} of image "
                f"attention (phi >= {self.tau:g}, layers {_range(self.middle)})"
            )
        if self.dims:
            why = "no visual token carries them" if self.pictures else "no sample has a picture"
            return f"text sinks only: dims {dims} at the first token; {why}"
        at = [self.layers.index(layer) for layer in self.middle]
        peaks = [float(p) for p in self.phi[at, :, 1].nan_to_num(0).amax(0)] if at else [0.0] * 3
        heights = ", ".join(f"{p:.1f} at {c} tokens" for p, c in zip(peaks, CLASSES, strict=True))
        why = "".join(f"; dimension {j} {reason}" for j, reason in self.refused.items())
        return (
            f"no sinks: no dimension meets their definition at tau = {self.tau:g} (largest "
            f"|x| / rms: {heights}){why}"
        )


def survey(
    activations: Callable[[ActivationRequest], Activations],
    prompts: Sequence[Prompt],
    m: ModelInfo,
    tau: float,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Survey:
    """Find sink dimensions, then measure the tokens that carry them.

    Two passes over the prompts, the second only where there are sinks; memory does not grow with
    their number.

    Args:
        activations: Passes of the plain model, not remembered.
        prompts: Half of them, say, with pictures.
        m: The model's numbers.
        tau: Threshold of phi.
        track: Shows progress over the prompts.
    """
    layers = m.attending(range(1, m.num_layers))
    middle = tuple(layer for layer in layers if 2 <= layer <= m.num_layers - 2) or layers
    census = _Census(len(layers), m.hidden_size, tau)
    for prompt in track(prompts):
        for at, token in enumerate(_tokens(activations, prompt, layers)):
            census.add(at, token)
    dims, refused = census.judge([layers.index(layer) for layer in middle])
    count = (census.samples, census.pictures)
    phi = census.phi
    flagged = taken = phi.new_zeros(len(layers))
    if dims:
        measure = _Census(len(layers), 1, tau)
        for prompt in track(prompts):
            for at, token in enumerate(_tokens(activations, prompt, layers, dims)):
                measure.add(at, token)
        phi, flagged, taken = measure.phi, measure.flagged[:, 0], measure.taken[:, 0]
    return Survey(dims, tau, layers, middle, *count, phi, flagged, taken, refused)


@dataclass(frozen=True)
class _Tokens:
    """One prompt in one layer: float32 [T, J] magnitudes, bool [T], image attention [N] or None."""

    a: Tensor
    image: Tensor
    attention: Tensor | None


def _tokens(
    activations: Callable[[ActivationRequest], Activations],
    prompt: Prompt,
    layers: tuple[int, ...],
    dims: tuple[int, ...] = (),
) -> Iterable[_Tokens]:
    """A prompt layer by layer; with dims, phi over them in place of every dimension's magnitude."""
    from halludecode.core.activations import ActivationRequest

    if not layers:
        return
    before = tuple(layer - 1 for layer in layers)  # leaving one layer is entering the next
    image = layers if prompt.pictures else ()
    kept: Any = activations(ActivationRequest(prompt, hidden=before, image=image, every_token=True))
    for at in range(len(layers)):
        a = magnitude(kept.hidden[at])
        phi = a[:, list(dims)].amax(-1, keepdim=True) if dims else a
        yield _Tokens(phi, kept.image_mask, kept.image[at].sum(0) if image else None)


class _Census:
    """Running sums over prompts, per layer and dimension."""

    def __init__(self, layers: int, width: int, tau: float) -> None:
        import torch

        self.tau = tau
        self._first = torch.zeros(layers, width)  # prompts whose first token is massive
        self._seen = torch.zeros(layers, width)  # pictures with a massive token
        self._hits = torch.zeros(layers, width, dtype=torch.float64)  # massive image tokens
        self._mass = torch.zeros(layers, width, dtype=torch.float64)  # attention they receive
        self._attention = torch.zeros(layers, 1, dtype=torch.float64)
        self._sum = torch.zeros(layers, len(CLASSES), width, dtype=torch.float64)
        self._peak = torch.full((layers, len(CLASSES), width), float("nan"))
        self._count = torch.zeros(layers, len(CLASSES))
        self._prompts, self._pictures = torch.zeros(layers), torch.zeros(layers)

    def add(self, at: int, tokens: _Tokens) -> None:
        """One prompt in one layer."""
        import torch

        a, image = tokens.a, tokens.image
        self._prompts[at] += 1
        self._first[at] += a[0] >= self.tau
        head = torch.zeros_like(image)
        head[0] = True
        for kind, mask in enumerate((head, image, ~image & ~head)):
            if mask.any():
                self._sum[at, kind] += a[mask].sum(0)
                self._peak[at, kind] = torch.fmax(self._peak[at, kind], a[mask].amax(0))
                self._count[at, kind] += int(mask.sum())
        if tokens.attention is not None and image.any():
            massive = (a[image] >= self.tau).float()
            self._pictures[at] += 1
            self._seen[at] += massive.amax(0)
            self._hits[at] += massive.sum(0)
            self._mass[at] += tokens.attention @ massive
            self._attention[at] += tokens.attention.sum()

    @property
    def samples(self) -> int:
        """Prompts read."""
        return int(self._prompts.amax()) if len(self._prompts) else 0

    @property
    def pictures(self) -> int:
        """Prompts with image tokens."""
        return int(self._pictures.amax()) if len(self._pictures) else 0

    @property
    def flagged(self) -> Tensor:
        """float32 [layers, width], share of image tokens that are massive."""
        return (self._hits / self._count[:, 1:2].clamp(min=1)).float()

    @property
    def taken(self) -> Tensor:
        """float32 [layers, width], share of image attention that they receive."""
        return (self._mass / self._attention.clamp(min=1e-30)).float()

    @property
    def phi(self) -> Tensor:
        """float32 [layers, classes, 2]: mean and largest of the largest dimension's magnitude."""
        import torch

        mean = (self._sum / self._count[..., None]).float().nan_to_num(nan=-1.0).amax(-1)
        mean = mean.masked_fill(self._count == 0, float("nan"))
        return torch.stack([mean, self._peak.nan_to_num(nan=-1.0).amax(-1)], -1).masked_fill(
            (self._count == 0)[..., None], float("nan")
        )

    def judge(self, middle: Sequence[int]) -> tuple[tuple[int, ...], dict[int, str]]:
        """Sink dimensions by the module's definition, and why others that are massive are none."""
        if not middle:
            return (), {}
        at = list(middle)

        def steady(hits: Tensor, of: Tensor) -> Tensor:
            often = hits[at] / of[at, None].clamp(min=1) >= MOST_PROMPTS
            return often.float().mean(0) >= MOST_LAYERS

        candidate = steady(self._first, self._prompts) | steady(self._seen, self._pictures)
        flagged, taken = self.flagged[at].mean(0), self.taken[at].mean(0)
        height = self._peak[at, :2].nan_to_num(0).amax((0, 1))
        kept: list[int] = []
        refused: dict[int, str] = {}
        massive = [int(j) for j in candidate.nonzero().flatten()]
        for j in sorted(massive, key=lambda j: -float(height[j])):
            share, got = float(flagged[j]), float(taken[j])
            if share > RARE:
                refused[j] = f"is massive in {share:.0%} of visual tokens: it marks pictures"
            elif share and got < FAR_MORE * share:
                refused[j] = f"is massive in {share:.1%} of visual tokens, which take {got:.1%} of "
                refused[j] += "image attention: they are not attended to as sinks are"
            else:
                kept.append(j)
        return tuple(sorted(kept[:MOST_DIMS])), dict(list(refused.items())[:MOST_DIMS])


def _range(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
