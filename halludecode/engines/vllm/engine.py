"""In the front end: the vLLM engine, which answers any requests in one continuous batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import HalluDecodeError, InvalidModel
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.engines import VLLM_PROVIDES
from halludecode.engines.api import Explain, Explanation, ExtraRows, Output, Request, Sampling
from halludecode.engines.base import LocalEngine, Writing, listed
from halludecode.engines.explain import probed, warnings
from halludecode.engines.inputs.rows import Row
from halludecode.engines.vllm.frontend.activations import ActivationPasses
from halludecode.engines.vllm.frontend.capacity import check_known, check_plan
from halludecode.engines.vllm.frontend.late_rows import tell_if_never, why_from_start
from halludecode.engines.vllm.frontend.loading import Loaded, load_engine
from halludecode.engines.vllm.frontend.opening import RequestOpener
from halludecode.engines.vllm.frontend.output_reader import OutputReader, PartialAnswer
from halludecode.engines.vllm.frontend.pending import (
    PendingAnswer,
    PendingRequest,
    answered,
    explained,
    outcome,
)
from halludecode.engines.vllm.frontend.requests import OpenRequest, RequestBuilder, RequestGroup
from halludecode.engines.vllm.protocol import DROP_STATE, GroupReport
from halludecode.engines.vllm.row_metadata import Names


class VLLMEngine(LocalEngine):
    """A model in vLLM that answers requests under any strategy whose needs are served here.

    Args:
        model: Hub id, path, or "testbed".
        artifacts: Folder of what `calibrate` made; None is the user's own, see `ArtifactStore`.
        start: Starts vLLM in another way (the server's); see `load_engine`.
        extra_rows: As of `HFEngine`; which plans' rows begin with the prompt under either says
            `rows_begin`. Rows that have begun stay beside their main row.
        **options: Whatever vLLM's `EngineArgs` take (max_model_len, dtype, max_num_seqs, ...).

    Attributes:
        loaded: The running vLLM, and what this process knows of the model there.

    Raises:
        InvalidModel: It cannot be loaded, or its family has no layout.
        MissingExtra: vLLM is not installed, or is of another version.
        InvalidRequest: vLLM does not know an option.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        *,
        artifacts: str | Path | None = None,
        start: Callable[..., Any] | None = None,
        extra_rows: ExtraRows = "on_demand",
        **options: Any,
    ) -> None:
        self.loaded: Loaded = load_engine(model, options, start)
        own = self.loaded.config, self.loaded.processor
        super().__init__(model, *own, VLLM_PROVIDES, artifacts, extra_rows)
        tell_if_never(extra_rows, self.loaded.vllm_config)
        self._request_builder = RequestBuilder(self.loaded, self.inputs)
        self._name = Names(self.loaded.replicas)
        self._collector = ActivationPasses(
            self.loaded, self.row_builder, self._request_builder, self._name
        )
        own_parts = self.row_builder, self._request_builder, self._collector
        self._opener = RequestOpener(self.loaded, *own_parts)
        self._closed = False

    # Public ---------------------------------------------------------------------------------------
    def generate(
        self,
        requests: Request | Sequence[Request],
        strategy: hd_spec.Spec | Plan = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
        explain: Explain = False,
    ) -> list[Output]:
        """Answers in the order of the requests; all are handed to vLLM at once.

        Args:
            requests: One request or any number of them.
            strategy: Spec string, strategy instance, YAML form, or a plan of this engine.
            sampling: How tokens are drawn; greedy by default.
            score_words: Words whose first-step combined scores, without plausibility mask, are
                wanted (``Output.scores``).
            explain: See `HFEngine.generate`.

        Raises:
            UnknownStrategy, InvalidParameter, UnsupportedStrategy: Before any token is produced.
            InvalidRequest: A prompt or picture cannot be used, or its rows exceed the capacity.
            HookNeverFired: The model did not call a declared hook.
            HalluDecodeError: Another failure of a request, when all others are done; to keep their
                answers, use `generate_each`.
        """
        plan = probed(self.plan(strategy), self.model_info, explain)
        if explain:
            self._check_plan(plan)
        how = PendingRequest(plan, sampling or Sampling(), tuple(score_words))
        *_, outcomes = self.write([(request, how) for request in listed(requests)])
        return [self._warned(output, explain) for output in answered(outcomes)]

    def generate_each(
        self,
        requests: Sequence[Request],
        strategy: hd_spec.Spec | Plan = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[Output | HalluDecodeError]:
        """One output or error per request: what fails does not take the others along.

        Args:
            requests: See `generate`, as the rest.
            strategy: What acts.
            sampling: How tokens are drawn.
            score_words: Words whose scores are wanted.

        Raises:
            UnknownStrategy, InvalidParameter, UnsupportedStrategy: Before any token is produced.
        """
        how = PendingRequest(self.plan(strategy), sampling or Sampling(), tuple(score_words))
        *_, outcomes = self.write([(request, how) for request in requests], each=True)
        return outcomes

    def rows(self, request: Request, strategy: hd_spec.Spec | Plan = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (earlier passes are run)."""
        opened = self.open([request], self.plan(strategy), late=False)
        try:
            return dict(opened[0].prepared.rows)
        finally:
            self.forget(opened)

    def activations(self, request: ActivationRequest, *, remember: bool = True) -> Activations:
        """What a pass of the plain model keeps; nothing is remembered on this side."""
        return self._collector.collect(request)

    @property
    def digest(self) -> str:
        """Identity of the weights, the same as on the HF engine."""
        return self.loaded.digest

    @property
    def context(self) -> int:
        """Most tokens a row may have."""
        return self.loaded.context

    @property
    def end_tokens(self) -> list[int]:
        """End-of-sequence ids."""
        return self.loaded.eos

    def close(self) -> None:
        """Give the model's memory back; the engine answers nothing afterwards, and says so."""
        self._closed = True
        self.loaded.engine.engine_core.shutdown()

    def prompt_of(self, request: Request) -> Prompt:
        """See `LocalEngine.prompt_of`; ``limit_mm_per_prompt`` holds for every request."""
        if self._closed:
            raise InvalidModel(f"This engine of {self.model_id} was closed; load the model anew.")
        prompt = super().prompt_of(request)
        self.loaded.check_pictures(len(prompt.pictures))
        return prompt

    # For whoever drives vLLM: the server, benchmarks ----------------------------------------------
    def rows_begin(self, plan: Plan) -> str:
        """Why the rows of a plan begin with the prompt; "" where they wait until a token asks."""
        return why_from_start(plan, self.extra_rows, self.loaded.vllm_config)

    def open(
        self, requests: Sequence[Request], plan: Plan, *, late: bool = True
    ) -> list[OpenRequest]:
        """Make the rows of some requests, passes before their answers run.

        Args:
            requests: What is asked.
            plan: What acts.
            late: Make those alone that a request begins with, see `rows_begin`.

        Raises:
            HalluDecodeError: One cannot be prepared; nothing is kept of any.
        """
        prompts = [self.prompt_of(request) for request in requests]
        names = [self._name() for _ in prompts]
        try:
            named = list(zip(names, prompts, strict=True))
            return self._opener.open(named, plan, late=late and not self.rows_begin(plan))
        except BaseException:
            self._forget(names)
            raise

    def group(
        self, opened: OpenRequest, sampling: Sampling, score_words: Sequence[str] = ()
    ) -> RequestGroup:
        """The vLLM requests of a request, per answer its rows.

        Raises:
            InvalidRequest: It can never fit; the sentence names the numbers.
        """
        opened.sampling = sampling
        self._opener.reserve(opened, sampling)
        rules, words = self.token_rules(sampling), self.inputs.scored_words(score_words)
        given = opened.plan, sampling, opened.name, words, rules
        return self._request_builder.group(opened.prepared, *given)

    def joining(self, opened: OpenRequest, main: Any, ids: Sequence[int]) -> list[Any]:
        """See `RequestOpener.joining`."""
        return self._opener.joining(opened, main, ids)

    def forget(self, opened: Sequence[OpenRequest]) -> None:
        """Drop what the workers hold of requests that are done, or will not be handed over."""
        self._forget([each.name for each in opened])

    def write(
        self,
        pending: Sequence[tuple[Request, PendingRequest]],
        *,
        live: bool = False,
        each: bool = False,
    ) -> Iterator[list[Any]]:
        """Yields the answers after every step if ``live``, at the end the outcomes.

        Args:
            pending: Requests and how each is answered.
            live: Whether text is wanted after every token.
            each: Go on with the others where a request cannot be prepared.
        """
        begun = time.perf_counter()
        works = [PendingAnswer(self._name(), request, how) for request, how in pending]
        reader = OutputReader(self.loaded, live=live, join=self._opener.join)
        try:
            self._prepare(works, each=each)
            prepared = time.perf_counter()
            for work in works:
                if work.group is not None:
                    reader.add(work.group, work.settings.sampling, work.opened)
            for _ in reader.steps():
                if live:
                    yield reader.answers
            reports = reader.reports()
        finally:
            reader.abort()
            self._forget([work.name for work in works])
        clock = (begun, prepared, reader.first or prepared, time.perf_counter())
        yield self._outcomes(works, reader.answers, reports, clock)

    # What `LocalEngine` asks ----------------------------------------------------------------------
    def _check_plan(self, plan: Plan) -> None:
        check_plan(plan, self.loaded.vllm_config)
        check_known(plan, self.loaded.call_workers)

    def _written(
        self, request: Request, plan: Plan, sampling: Sampling
    ) -> Iterator[Writing | Output]:
        for state in self.write([(request, PendingRequest(plan, sampling))], live=True):
            if isinstance(state[0], HalluDecodeError):
                raise state[0]
            yield state[0]

    def _hardware(self) -> tuple[Any, str, Mapping[str, str]]:
        import vllm

        config = self.loaded.vllm_config
        device = str(config.device_config.device_type)
        return config.model_config.dtype, device, {"vllm": vllm.__version__}

    # Private --------------------------------------------------------------------------------------
    def _prepare(self, works: Sequence[PendingAnswer], *, each: bool) -> None:
        """Rows of all requests; earlier passes of those under one plan run together."""
        for work in works:
            with self._kept(work, each=each):
                work.prompt = self.prompt_of(work.request)
        for plan in {id(work.settings.plan): work.settings.plan for work in works}.values():
            own = [w for w in works if w.settings.plan is plan and w.prompt is not None]
            if not own:
                continue
            try:
                self._prepare_together(own, plan)
            except HalluDecodeError as error:
                if not each:
                    raise
                for work in own:  # one of them is at fault
                    if len(own) == 1:
                        work.error = error
                        break
                    with self._kept(work, each=each):
                        self._prepare_together([work], plan)
        for work in works:
            if work.opened is not None:
                with self._kept(work, each=each):
                    how = work.settings.sampling, work.settings.words
                    work.group = self.group(work.opened, *how)

    @contextmanager
    def _kept(self, work: PendingAnswer, *, each: bool) -> Iterator[None]:
        try:
            yield
        except HalluDecodeError as error:
            if not each:
                raise
            work.error = error

    def _prepare_together(self, works: Sequence[PendingAnswer], plan: Plan) -> None:
        named = [(w.name, w.prompt) for w in works if w.prompt is not None]
        late = not self.rows_begin(plan)
        for work, opened in zip(works, self._opener.open(named, plan, late=late), strict=True):
            work.opened = opened

    def _forget(self, names: Sequence[str]) -> None:
        if not self._closed:  # else it went with the workers
            self.loaded.call_workers(DROP_STATE, list(names))

    def _outcomes(
        self,
        works: Sequence[PendingAnswer],
        answers: Sequence[PartialAnswer],
        reports: Sequence[GroupReport],
        clock: tuple[float, float, float, float],
    ) -> list[Output | HalluDecodeError]:
        share = [(b - a) * 1000 / max(len(works), 1) for a, b in pairwise(clock)]
        outcomes: list[Output | HalluDecodeError] = []
        start = 0
        for work in works:
            stop = start + (work.group.children if work.group is not None else 0)
            own = answers[start:stop], reports[start:stop]
            outcomes.append(outcome(work, *own, share, self._explained))
            start = stop
        return outcomes

    def _explained(
        self, work: PendingAnswer, answer: PartialAnswer, report: GroupReport
    ) -> Explanation | None:
        """One answer token by token, if that was asked for and there is an image."""
        written = answer.text, answer.ids, report["readings"]
        decode = self.processor.tokenizer.decode
        return explained(work.settings.plan, work.prepared, written, self.family, decode)

    def explaining(self, plan: Plan) -> Plan:
        """A plan of this engine whose answers are explained, without maps.

        Raises:
            UnsupportedStrategy: They cannot be.
        """
        probing = probed(plan, self.model_info, True)
        self._check_plan(probing)
        return probing

    def _warned(self, output: Output, explain: Explain) -> Output:
        """With what the user should know about an explanation that is not whole."""
        more = warnings(explain, self.family, pictured=output.explanation is not None)
        return replace(output, warnings=output.warnings + more) if more else output
