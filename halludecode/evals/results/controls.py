"""What a sampled result must be read against: truncation alone and temperature alone.

Two things make sampled answers better without looking at the picture again (Yin et al.,
arXiv:2504.10020). The plausibility mask of contrastive rules cuts off the tail: control
``apc_only``. And a rule whose coefficients on its rows sum to s acts as temperature 1 / s wherever
the rows agree: control ``scaled(scale=s)``. Both numbers are measured on the compiled rule itself.
Under greedy decoding neither control changes a token, so nothing needs to be run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from halludecode.core import spec as hd_spec

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.plan import Plan

NAMES = ("apc_only", "scaled")
GREEDY = (
    "Greedy decoding: apc_only and scaled choose the very tokens greedy does, so neither is needed "
    "as a control."
)
UNSTATED = "The temperature is not stated: whether sampling controls are needed cannot be told."
NOT_RUN = "not run; add it with --controls"
STEPS = (1, 40)  # first and a later token: some weights grow with the answer
DEEPEST = 60.0  # a token e^-60 as likely as the best is masked by any cut-off that matters
TOLERANCE = 1e-4


def net_scale(plan: Plan) -> float | None:
    """The factor a rule puts on the logits when all its rows say the same.

    Equal random logits are fed to every row of every part, and the slope of the combined scores is
    fitted, up to a constant, which no softmax sees.

    Args:
        plan: A compiled strategy or composition.

    Returns:
        1 for a rule that keeps the temperature, 1 + alpha for one that adds alpha rows, 0 for a
        log-ratio; None where scores are no fixed multiple of the logits, or hang on state that only
        a prompt gives.
    """
    import torch

    slopes = []
    for seed in (0, 1):
        # Of different peakedness, so that a weight that depends on confidence is found out.
        logits = torch.randn(1, 256, generator=torch.Generator().manual_seed(seed)) * (1 + 3 * seed)
        for t in STEPS:
            scores = _fed(plan, logits, t, masking=False)
            slope = None if scores is None else _slope(logits, scores)
            if slope is None:
                return None
            slopes.append(slope)
    if max(slopes) - min(slopes) > TOLERANCE * max(1.0, abs(slopes[0])):
        return None
    return round(sum(slopes) / len(slopes), 4) + 0.0  # + 0.0 turns -0.0 into 0.0


def cutoff(plan: Plan) -> float:
    """The plausibility cut-off a rule masks with: beta of ``p(y) >= beta * max p``, 0 for none.

    Found by lowering the second of two tokens until the rule bans it, all rows equal.
    """
    import torch

    def banned(depth: float) -> bool:
        scores = _fed(plan, torch.tensor([[0.0, -depth]]), 1, masking=True)
        return scores is not None and bool(scores[0, 1] == -math.inf)

    if not banned(DEEPEST):
        return 0.0
    low, high = 0.0, DEEPEST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if banned(middle) else (middle, high)
    return float(f"{math.exp(-high):.4g}")


def _fed(plan: Plan, logits: Tensor, t: int, *, masking: bool) -> Tensor | None:
    """Combined scores [1, V] with ``logits`` in every row; None where a rule needs its state."""
    import torch

    from halludecode.core.step import Step, combine

    at = torch.tensor([[t]])
    parts = [
        (
            part.strategy,
            Step(
                dict.fromkeys(["main", *part.branches], logits),
                at,
                decode=lambda x, norm: x,  # early layers say the same too
                residuals=(said := dict.fromkeys(part.early, logits)),
                beside=dict.fromkeys(part.branches, said),
                branch=lambda residual, last, normed: logits,
                masking=masking,
            ),
        )
        for part in plan.parts
        if part.combines
    ]
    try:
        return combine(parts, logits).scores
    except KeyError:
        return None


def _slope(logits: Tensor, scores: Tensor) -> float | None:
    """Slope s of ``scores = s * logits + constant``; None where they are not."""
    x, z = (values.double() - values.double().mean() for values in (logits, scores))
    slope = float((x * z).sum() / (x * x).sum())
    apart = float((z - slope * x).abs().max() / x.abs().max())
    return slope if apart <= TOLERANCE * max(1.0, abs(slope)) else None


# Which control ----------------------------------------------------------------------------------


def is_control(plan: Plan) -> bool:
    """Whether a plan is plain decoding or one of the controls, which need no control."""
    return all(part.strategy.name in NAMES for part in plan.parts)


def controls_of(plan: Plan) -> dict[str, Any]:
    """What a sampled strategy must be read against.

    Args:
        plan: The compiled strategy.

    Returns:
        ``net_scale`` (None where there is none), ``cutoff``, ``read_against`` (spec strings; the
        last is the closest) and ``note``, a sentence on what cannot be matched, or "".
    """
    if not hasattr(plan, "parts"):  # compiled by a server, which tells
        return dict(plan.controls)
    scale, beta = net_scale(plan), cutoff(plan)
    measured: dict[str, Any] = {"net_scale": scale, "cutoff": beta, "read_against": [], "note": ""}
    if is_control(plan):
        return measured
    mask = f"apc_only(beta={beta:g})" if beta else "apc_only"
    if scale == 1:
        return measured | {"read_against": [mask]}
    if scale is None or scale <= 0:
        why = "no fixed multiple of the logits" if scale is None else f"net scale {scale:g}"
        note = f"{why}: no temperature of the plain model matches it"
        return measured | {"read_against": [mask], "note": note}
    warm = f"scaled(scale={scale:g})"
    both = [f"{warm}+{mask}"] if beta else []
    return measured | {"read_against": ["apc_only", warm, *both]}


def with_controls(engine: Any, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans of a run and, behind them, the controls they must be read against.

    Args:
        engine: Compiles the controls.
        plans: Spec as given to compiled plan.
    """
    extended = dict(plans)
    taken = {plan.canonical for plan in plans.values()}
    needed = [spec for plan in plans.values() for spec in controls_of(plan)["read_against"]]
    for spec in ["apc_only", *needed] if needed else []:
        plan = engine.plan(spec)
        if plan.canonical not in taken:
            taken.add(plan.canonical)
            extended[spec] = plan
    return extended


def record(plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    """`controls_of` every plan by canonical name, controls by theirs, for ``run.json``."""
    measured = {plan.canonical: controls_of(plan) for plan in plans.values()}
    for controls in measured.values():
        specs = controls["read_against"]
        controls["read_against"] = [hd_spec.format(hd_spec.parse(spec)) for spec in specs]
    return measured


def against(
    measured: Mapping[str, Any] | None, temperature: float, compared: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``sampling`` block of a difference.

    Args:
        measured: What `record` says of the strategy; None where the run was made without.
        temperature: Of the task.
        compared: Control to its entry (``n`` and ``metrics``), for the controls that were run.

    Returns:
        ``{"note"}`` for greedy decoding; else ``net_scale``, ``cutoff``, ``note`` and ``against``,
        one entry per control.
    """
    if temperature == 0:
        return {"note": GREEDY}
    if measured is None:
        return {"note": "Net scale not measured; run eval again with --controls."}
    entries: Sequence[dict[str, Any]] = [
        {"control": name, **compared.get(name, {"reason": NOT_RUN})}
        for name in measured["read_against"]
    ]
    return {**measured, "read_against": list(measured["read_against"]), "against": entries}
