"""Where in a picture attention rises from layer to layer, and which written tokens look there.

Shapes: L layers, H query heads, S tokens of an answer's beginning, N keys or image tokens, R
requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

OUTLIER = 3.0  # standard deviations from the mean at which a number is clipped


def top_half(values: Tensor) -> Tensor:
    """Bool [.., H, Q]: the half of the heads with the largest values, one at least.

    Those alike to five digits keep their order: where a window shows text alone, all pay it 1.
    """
    order = (values * 1e5).round().argsort(dim=-2, descending=True, stable=True).argsort(-2)
    return order < max(values.shape[-2] // 2, 1)


def risen(image: Tensor | None, count: int, tau: float, alpha: float) -> Tensor:
    """Float [N], 0 to alpha: how often an image token becomes active from a layer to the next.

    Args:
        image: [L, H, S, N], what each of some written tokens pays each image token; None where
            there are none.
        count: Image tokens.
        tau: Active is what has more than tau times its layer's mean.
        alpha: The largest value; all are 0 where none rises more than another.
    """
    import torch

    if image is None:
        return torch.zeros(count)
    half = top_half(image.sum(-1))[..., None]
    paid = (image * half).sum(1).mean(1) / half[0, :, 0].sum()  # [L, N]
    active = paid > tau * paid.mean(-1, keepdim=True)
    rises = (active[1:] & ~active[:-1]).sum(0)
    overall = paid.mean(0)
    heat = (rises * (overall > overall.mean())).to(image.dtype)
    edge = OUTLIER * heat.std()
    heat = heat.clamp(heat.mean() - edge, heat.mean() + edge)
    spread = heat.max() - heat.min()
    return (alpha * (heat - heat.min()) / spread).where(spread > 0, 0.0)


def carried_on(grounding: Tensor, a: Attention) -> Tensor:
    """Float [R, N]: numbers at text keys, where a written token has that of the token before it.

    It is the query that wrote it; the prompt's last token has 0.
    """
    written, asked = a.generated.of("main"), (a.text & ~a.generated).of("main")
    before = grounding.roll(1, -1).where(written, grounding)
    return before.masked_fill(asked & (asked.flip(-1).cumsum(-1).flip(-1) == 1), 0.0)


def stressed(grounding: Tensor, beta: float, among: Tensor) -> Tensor:
    """Float [R, N]: factors, beta to 1 + beta by how grounded tokens are beside each other.

    Args:
        grounding: [R, N].
        beta: What the least grounded gets.
        among: Bool [R, N], the tokens; factors are 1 elsewhere, and where all are alike.
    """
    own, inf = grounding.where(among, 0.0), float("inf")
    count = among.sum(-1, keepdim=True)
    mean = own.sum(-1, keepdim=True) / count.clamp_min(1)
    squares = (own - mean).square().where(among, 0.0).sum(-1, keepdim=True)
    edge = OUTLIER * (squares / (count - 1).clamp_min(1)).sqrt()
    least = grounding.where(among, inf).amin(-1, keepdim=True)
    spread = grounding.where(among, -inf).amax(-1, keepdim=True) - least
    clipped = own.maximum(mean - edge).minimum(mean + edge)
    return ((clipped - least) / spread + beta).where(among & (spread > 0), 1.0)
