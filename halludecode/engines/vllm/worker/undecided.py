"""In a worker: tokens that the main row does not decide, and rows that have not begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from halludecode.core import step as hd_step
from halludecode.core.plan import Plan
from halludecode.engines.explain import unprobed
from halludecode.engines.vllm.worker.step_batch import Rows, placed

if TYPE_CHECKING:
    from halludecode.engines.vllm.worker.sampler import GroupSampling


def pictured(groups: Sequence[Rows], like: Tensor) -> Tensor:
    """Bool [B]: whose request has a picture."""
    return placed([rows["main"].metadata.pictured for rows in groups], like.device)


def decided(
    sampler: GroupSampling, plan: Plan | None, groups: Sequence[Rows], logits: Tensor, main: Tensor
) -> Tensor:
    """Bool [B]: whose next token the main row decides alone, see `Plan.can_wait`.

    Args:
        sampler: Of the step.
        plan: Of these groups.
        groups: Whose token is drawn.
        logits: Float32 [rows, V].
        main: Those of the main rows [B, V].
    """
    if plan is None or not unprobed(plan).can_wait:
        return main.new_zeros(len(main)).bool()
    return hd_step.decided(sampler.steps(plan, groups, logits), main) & pictured(groups, main)


def ask(sampler: GroupSampling, logits: Tensor) -> None:
    """Draw nothing for groups whose main row is alone and does not decide: the scheduler sees it.

    Args:
        sampler: Of the step, whose groups these leave.
        logits: [rows, V] under what their requests ban.
    """
    alike: dict[str, list[Rows]] = {}
    for rows in sampler.current.groups:
        metadata = rows["main"].metadata
        if metadata.alone and metadata.pictured:
            alike.setdefault(metadata.plan, []).append(rows)
    for text, groups in alike.items():
        at = placed([rows["main"].index for rows in groups], logits.device)
        given = sampler.state.plan(text), groups, logits.float(), logits[at].float()
        try:
            own = decided(sampler, *given).tolist()
        except Exception as error:
            for rows in groups:
                sampler.state.record(rows["main"].metadata.group).fail(error, text)
            continue
        for rows, alone in zip(groups, own, strict=True):
            if not alone:
                sampler.runner.discard_request_mask.np[rows["main"].index] = True
                sampler.current.groups.remove(rows)
