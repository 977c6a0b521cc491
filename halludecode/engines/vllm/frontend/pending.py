"""A request on its way through the vLLM engine, and what became of it: an answer or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.engines.api import Explanation, Output, Request, Sampling, Timings
from halludecode.engines.explain import unprobed
from halludecode.engines.inputs.rows import PreparedRequest
from halludecode.engines.outputs import effect_of
from halludecode.engines.vllm.frontend.output_reader import PartialAnswer
from halludecode.engines.vllm.frontend.requests import RequestGroup
from halludecode.engines.vllm.row_metadata import kept
from halludecode.engines.vllm.worker.forward_context import error_class


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
    ask: PendingRequest
    prompt: Prompt | None = None
    job: PreparedRequest | None = None
    group: RequestGroup | None = None
    error: HalluDecodeError | None = None


def outcome(
    work: PendingAnswer,
    answers: Sequence[PartialAnswer],
    notes: Sequence[Mapping[str, Any]],
    share: Sequence[float],
    explained: Callable[[PendingAnswer, PartialAnswer, Mapping[str, Any]], Explanation | None],
) -> Output | HalluDecodeError:
    """The answers to one request, or why there are none."""
    if work.job is None or work.group is None:
        return work.error or HalluDecodeError(f"{work.name} was never prepared.")
    for note, answer in zip(notes, answers, strict=True):
        if note["error"]:
            return error_class(note["kind"])(note["error"])
        if answer.error is not None:
            return answer.error
    differs = kept(notes[0]["differs"], len(answers[0].ids))
    seen: Any = SimpleNamespace(**{**notes[0], "differs": differs})
    effect, warnings = effect_of(unprobed(work.ask.plan), seen, work.job)
    told = [explained(work, a, note) for a, note in zip(answers, notes, strict=True)]
    return Output(
        choices=tuple(a.choice(one) for a, one in zip(answers, told, strict=True)),
        strategy=work.ask.plan.canonical,
        effect=effect,
        timings=Timings(*share, tokens=sum(len(a.ids) for a in answers)),
        rows=tuple(work.job.rows),
        scores=notes[0]["scores"],
        warnings=warnings,
    )


def answered(outcomes: Sequence[Output | HalluDecodeError]) -> list[Output]:
    """The outcomes, all of them answers.

    Raises:
        HalluDecodeError: The first failure.
    """
    for one in outcomes:
        if isinstance(one, HalluDecodeError):
            raise one
    return [one for one in outcomes if isinstance(one, Output)]
