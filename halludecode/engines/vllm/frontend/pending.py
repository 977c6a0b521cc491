"""In the front end: a request on its way through vLLM, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from halludecode.core.errors import HalluDecodeError, HookNeverFired
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.engines.api import Explanation, Output, Request, Sampling, Timings
from halludecode.engines.explain import (
    TokenReading,
    explaining,
    explanation,
    glance,
    rasters,
    unprobed,
)
from halludecode.engines.inputs.rows import PreparedRequest
from halludecode.engines.outputs import effect_of, settled
from halludecode.engines.vllm.frontend.output_reader import PartialAnswer
from halludecode.engines.vllm.frontend.requests import OpenRequest, RequestGroup
from halludecode.engines.vllm.protocol import GroupReport, differing_within, error_class
from halludecode.models.family import ModelFamily


@dataclass(frozen=True)
class PendingRequest:
    """How one request is answered."""

    plan: Plan
    sampling: Sampling
    words: tuple[str, ...] = ()


@dataclass
class PendingAnswer:
    """One request on its way to its outcome; ``error`` is why there will be no answer."""

    name: str
    request: Request
    settings: PendingRequest
    prompt: Prompt | None = None
    opened: OpenRequest | None = None
    group: RequestGroup | None = None
    error: HalluDecodeError | None = None

    @property
    def prepared(self) -> PreparedRequest | None:
        """Its rows."""
        return self.opened.prepared if self.opened is not None else None


def outcome(
    pending: PendingAnswer,
    answers: Sequence[PartialAnswer],
    reports: Sequence[GroupReport],
    share: Sequence[float],
    explained: Callable[[PendingAnswer, PartialAnswer, GroupReport], Explanation | None],
) -> Output | HalluDecodeError:
    """The answers to one request, or why there are none.

    Args:
        pending: The request.
        answers: Of its children.
        reports: The workers', one for each.
        share: Milliseconds before, until and after the first token.
        explained: Makes the explanation of an answer, where one is wanted.
    """
    if pending.prepared is None or pending.group is None:
        return pending.error or HalluDecodeError(f"{pending.name} was never prepared.")
    for report, answer in zip(reports, answers, strict=True):
        if report["error"]:
            return error_class(report["kind"])(report["error"])
        if answer.error is not None:
            return answer.error
    first, plan = reports[0], pending.settings.plan
    differs = differing_within(first["differs"], len(answers[0].ids))
    started = not pending.prepared.main_only
    counted: Any = SimpleNamespace(changed=first["changed"], differs=differs, started=started)
    effect, warnings = effect_of(unprobed(plan), counted, pending.prepared)
    pairs = list(zip(answers, reports, strict=True))
    return Output(
        choices=tuple(a.choice(explained(pending, a, report)) for a, report in pairs),
        strategy=plan.canonical,
        effect=effect,
        timings=Timings(*share, tokens=sum(len(a.ids) for a in answers)),
        rows=tuple(pending.prepared.rows),
        scores=first["scores"],
        warnings=warnings,
        decided=first["decided"],
    )


def explained(
    plan: Plan,
    prepared: PreparedRequest | None,
    written: tuple[str, Sequence[int], Sequence[Any]],
    family: ModelFamily,
    decode: Callable[..., str],
) -> Explanation | None:
    """One answer token by token; None without an image, or where the plan does not explain.

    Args:
        plan: What acted.
        prepared: The request's rows.
        written: Its text, its token ids, and the workers' readings.
        family: The model's.
        decode: The tokenizer's.

    Raises:
        HookNeverFired: Tokens were written that nobody read.
    """
    if explaining(plan) is None or not prepared or not prepared.prompt.pictures:
        return None
    text, ids, readings = written
    if len(readings) < len(ids):
        raise HookNeverFired(
            f"{len(ids)} tokens were written and {len(readings)} of them read; explain with "
            "engine='hf'."
        )
    row = prepared.rows["main"]
    spans = rasters(row, family)
    read = [
        TokenReading(grounding, entropy, glance(torch.tensor(seen), row, spans))
        for grounding, entropy, seen in readings[: len(ids)]
    ]
    texts = (decode(ids[: i + 1], skip_special_tokens=True).strip() for i in range(len(read)))
    return explanation(text, ids, [len(settled(each, ())) for each in texts], read)


def answered(outcomes: Sequence[Output | HalluDecodeError]) -> list[Output]:
    """The outcomes, all of them answers.

    Raises:
        HalluDecodeError: The first failure.
    """
    for each in outcomes:
        if isinstance(each, HalluDecodeError):
            raise each
    return [each for each in outcomes if isinstance(each, Output)]
