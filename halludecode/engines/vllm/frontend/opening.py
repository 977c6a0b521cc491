"""In the front end: rows of requests are made, passes before their answers run, now or later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from halludecode.core import spec as hd_spec
from halludecode.core.errors import HalluDecodeError
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.engines.api import Sampling
from halludecode.engines.inputs.rows import PreparedRequest, RowBuilder
from halludecode.engines.vllm.frontend.activations import ActivationPasses
from halludecode.engines.vllm.frontend.late_rows import fits_whole, late_passes
from halludecode.engines.vllm.frontend.loading import Loaded
from halludecode.engines.vllm.frontend.output_reader import Late
from halludecode.engines.vllm.frontend.requests import OpenRequest, RequestBuilder
from halludecode.engines.vllm.protocol import SET_ARTIFACT, pack

KEPT = 256  # strategies whose artifacts the workers keep


class RequestOpener:
    """Makes the rows of requests.

    Args:
        loaded: The engine.
        row_builder: Where rows come from.
        request_builder: Where vLLM requests come from.
        collector: Runs passes before answers.
    """

    def __init__(
        self,
        loaded: Loaded,
        row_builder: RowBuilder,
        request_builder: RequestBuilder,
        collector: ActivationPasses,
    ) -> None:
        self._loaded, self._collector = loaded, collector
        self._row_builder, self._request_builder = row_builder, request_builder
        self._sent: dict[str, Any] = {}  # artifacts the workers have, by the strategy's text

    def open(
        self, named: Sequence[tuple[str, Prompt]], plan: Plan, *, late: bool
    ) -> list[OpenRequest]:
        """Requests under one plan with the rows they begin with.

        Args:
            named: Their names and prompts.
            plan: What acts.
            late: Whether those are their main rows alone, see `late_rows.why_from_start`.
        """
        prepared = self._prepared(named, plan, main_only=late)
        return [
            OpenRequest(name, plan, prompt, made)
            for (name, prompt), made in zip(named, prepared, strict=True)
        ]

    def reserve(self, opened: OpenRequest, sampling: Sampling) -> None:
        """Make all rows where a request may not fit with them, so that it is refused at once."""
        room = (sampling.max_new_tokens, self._loaded.vllm_config, self._loaded.replicas)
        main = opened.prepared.rows["main"]
        if opened.prepared.main_only and not fits_whole(main, opened.plan, *room):
            self._complete([opened])

    def joining(self, opened: OpenRequest, main: Any, ids: Sequence[int]) -> list[Any]:
        """The vLLM requests of rows that join one answer of a request.

        Args:
            opened: The request, whose `group` has been made.
            main: The vLLM request of the answer's main row.
            ids: The answer so far.

        Raises:
            HalluDecodeError: They cannot be made, or never fit.
        """
        if opened.prepared.main_only:
            self._complete([opened])
        sampling = opened.sampling or Sampling()
        return self._request_builder.joining(opened.prepared, opened.plan, sampling, main, ids)

    def join(self, asking: Sequence[Late]) -> list[list[Any] | HalluDecodeError]:
        """Rows that join answers, per answer, or why there are none; passes run together.

        Args:
            asking: Requests, main rows of theirs, and the answers so far.
        """
        new = {id(o): o for o, _, _ in asking if o.prepared.main_only}
        by_plan: dict[int, list[OpenRequest]] = {}
        for opened in new.values():
            by_plan.setdefault(id(opened.plan), []).append(opened)
        for alike in by_plan.values():
            if len(alike) > 1:
                with suppress(HalluDecodeError):  # one of them is at fault, which it says below
                    self._complete(alike)
        made: list[list[Any] | HalluDecodeError] = []
        for opened, main, asks in asking:
            try:
                made.append(self.joining(opened, main, asks.ids))
            except HalluDecodeError as error:
                made.append(error)
        return made

    def _complete(self, opened: Sequence[OpenRequest]) -> None:
        """Make the rows that requests of one plan began without."""
        named = [(each.name, each.prompt) for each in opened]
        for each, made in zip(opened, self._prepared(named, opened[0].plan), strict=True):
            each.prepared = made

    def _prepared(
        self, named: Sequence[tuple[str, Prompt]], plan: Plan, *, main_only: bool = False
    ) -> list[PreparedRequest]:
        """Rows of requests under one plan, their earlier passes run together."""
        self._send_artifacts(plan)
        names, prompts = [name for name, _ in named], [prompt for _, prompt in named]
        run = not (main_only and late_passes(plan))
        states = self._collector.states(prompts, plan, names, run=run)
        return [
            self._row_builder.prepare(prompt, plan, state, main_only=main_only)
            for prompt, state in zip(prompts, states, strict=True)
        ]

    def _send_artifacts(self, plan: Plan) -> None:
        for part in plan.parts:
            artifact, text = part.model_info.artifact, hd_spec.format((part.strategy,))
            sent = self._sent.pop(text, None)
            if sent is not artifact:
                self._loaded.call_workers(SET_ARTIFACT, text, pack(artifact))
            if artifact is not None:
                self._sent[text] = artifact  # as the last used
        while len(self._sent) > KEPT:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            self._loaded.call_workers(SET_ARTIFACT, oldest, None)
