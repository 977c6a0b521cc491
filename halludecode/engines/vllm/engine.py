"""In the front end: the vLLM engine, which answers any requests in one continuous batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from halludecode.calibration.calibrator import Samples
from halludecode.core import spec as hd_spec
from halludecode.core.artifact import Artifact
from halludecode.core.errors import HalluDecodeError, HookNeverFired, InvalidRequest
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt
from halludecode.engines import VLLM_PROVIDES
from halludecode.engines.api import Chunk, Explain, Explanation, Output, Request, Sampling
from halludecode.engines.explain import (
    TokenReading,
    explaining,
    explanation,
    glance,
    probed,
    rasters,
    warnings,
)
from halludecode.engines.inputs.chat import to_prompt
from halludecode.engines.inputs.processor import InputProcessor
from halludecode.engines.inputs.rows import PreparedRequest, Row, RowBuilder
from halludecode.engines.outputs import settled, shower
from halludecode.engines.vllm.frontend.activations import ActivationCollector
from halludecode.engines.vllm.frontend.calibration import Host, HostCalibrator
from halludecode.engines.vllm.frontend.capacity import check_plan
from halludecode.engines.vllm.frontend.loading import Loaded, load_engine
from halludecode.engines.vllm.frontend.output_reader import OutputReader, PartialAnswer
from halludecode.engines.vllm.frontend.pending import (
    PendingAnswer,
    PendingRequest,
    answered,
    outcome,
)
from halludecode.engines.vllm.frontend.requests import RequestBuilder
from halludecode.engines.vllm.protocol import DROP_STATE, SET_ARTIFACT, GroupReport, pack
from halludecode.engines.vllm.row_metadata import name_of
from halludecode.models.families import check_family

KEPT = 256  # compiled strategies, and parts whose artifacts the workers keep


class VLLMEngine:
    """A model in vLLM that answers requests under any strategy whose needs are served here.

    Args:
        model: Hub id, path, or "testbed".
        artifacts: Folder of what `calibrate` made; None is the user's own (`hf.artifacts`).
        start: Starts vLLM in another way (the server's); see `load_engine`.
        **options: Whatever vLLM's `EngineArgs` take (max_model_len, dtype, tensor_parallel_size,
            kv_cache_memory_bytes, max_num_seqs, ...).

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
        **options: Any,
    ) -> None:
        self.model_id = model
        self._loaded: Loaded = load_engine(model, options, start)
        layout = self._loaded.layout
        self.provides = VLLM_PROVIDES - layout.lacks.keys()
        self.processor = self._loaded.processor
        feeder = InputProcessor(self.processor, self._loaded.config, layout)
        self._maker = RowBuilder(feeder, shower(self.processor, layout))
        self._feeds = RequestBuilder(self._loaded, feeder)
        self._plans: dict[str, Plan] = {}
        self._count = self._turn = 0
        self._collector = ActivationCollector(self._loaded, self._maker, self._feeds, self._name)
        self._host: Any = Host(self, self._loaded)
        collector: Any = self._collector
        self._calibrator = HostCalibrator(collector, artifacts)
        self._sent: dict[str, Any] = {}  # artifacts the workers have, by the part's text

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
        wanted = [requests] if isinstance(requests, Request) else list(requests)
        plan = strategy if isinstance(strategy, Plan) else self.plan(strategy)
        plan = probed(plan, self._loaded.model_info, explain)
        if explain:
            check_plan(plan, self._loaded.vllm_config)
        asked = PendingRequest(plan, sampling or Sampling(), tuple(score_words))
        *_, outcomes = self._write([(request, asked) for request in wanted])
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
        plan = strategy if isinstance(strategy, Plan) else self.plan(strategy)
        asked = PendingRequest(plan, sampling or Sampling(), tuple(score_words))
        *_, outcomes = self._write([(request, asked) for request in requests], each=True)
        return outcomes

    def stream(
        self, request: Request, strategy: hd_spec.Spec = "greedy", sampling: Sampling | None = None
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last chunk carries the `Output`."""
        sampling = sampling or Sampling()
        if sampling.n != 1:
            raise InvalidRequest("stream() writes one answer; use generate() for n > 1.")
        sent, count = "", 0
        for state in self._write(
            [(request, PendingRequest(self.plan(strategy), sampling))], live=True
        ):
            if isinstance(state[0], HalluDecodeError):
                raise state[0]
            if isinstance(state[0], Output):
                yield Chunk(state[0].text[len(sent) :], state[0].token_ids[count:], state[0])
                return
            ready = settled(state[0].text, sampling.stop)
            if ready.startswith(sent) and len(ready) > len(sent):
                yield Chunk(ready[len(sent) :], tuple(state[0].ids[count:]))
                sent, count = ready, len(state[0].ids)

    def rows(self, request: Request, strategy: hd_spec.Spec = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (earlier passes are run)."""
        plan = self.plan(strategy)
        name, prompt = self._name(), to_prompt(request, self._loaded.layout.placeholder)
        try:
            return dict(self._jobs([(name, prompt, plan)])[0].rows)
        finally:
            self._loaded.call_workers(DROP_STATE, [name])

    def plan(self, strategy: hd_spec.Spec, *, skip_off: bool = True) -> Plan:
        """Compile a strategy for this model; an optional artifact is made on first use."""
        given = hd_spec.parse(strategy)
        parts = tuple(self._calibrator.pinned(self._host, part) for part in given)
        key = f"{hd_spec.format(parts)}|{[type(p).__qualname__ for p in parts]}|{skip_off}"
        known = self._plans.pop(key, None)
        if known is None:
            found = {hd_spec.format((p,)): self._calibrator.artifact(self._host, p) for p in parts}
            plan = compile_plan(
                parts,
                self._loaded.model_info,
                VLLM_PROVIDES,
                engine=self.name,
                skip_off=skip_off,
                artifacts={text: a for text, a in found.items() if a is not None},
                model=self.model_id,
            )
            check_family(self._loaded.config, plan.needs, plan.canonical)
            check_plan(plan, self._loaded.vllm_config)
            known = plan
        self._plans[key] = known  # as the last used
        while len(self._plans) > KEPT:
            self._plans.pop(next(iter(self._plans)), None)
        return known

    def calibrate(
        self,
        strategy: hd_spec.Spec,
        samples: Samples | None = None,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> Artifact:
        """Make and keep a strategy's artifact, as `HFEngine.calibrate` does."""
        made = self._calibrator.make(self._host, strategy, samples, seed=seed, progress=progress)
        self._plans.clear()
        return made

    def describe(self) -> dict[str, Any]:
        """Model, dtype, device and library versions, for run records."""
        import transformers
        import vllm

        config = self._loaded.vllm_config
        return {
            "model": self.model_id,
            "model_digest": self.digest,
            "family": self._loaded.config.model_type,
            "engine": self.name,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "device": str(config.device_config.device_type),
            "image_processor": type(self.processor.image_processor).__name__,
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "vllm": vllm.__version__,
            },
        }

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        return self._loaded.digest

    def close(self) -> None:
        """Give the model's memory back; the engine answers nothing afterwards."""
        self._loaded.engine.engine_core.shutdown()

    # Private --------------------------------------------------------------------------------------
    def _write(
        self,
        asked: Sequence[tuple[Request, PendingRequest]],
        *,
        live: bool = False,
        each: bool = False,
    ) -> Iterator[list[Any]]:
        """Yields the answers after every step if ``live``, at the end the outcomes.

        Args:
            asked: Requests and how each is answered.
            live: Whether text is wanted after every token.
            each: Go on with the others where a request cannot be prepared.
        """
        begun = time.perf_counter()
        works = [PendingAnswer(self._name(), request, ask) for request, ask in asked]
        reader = OutputReader(self._loaded, live=live)
        try:
            self._prepare(works, each=each)
            prepared = time.perf_counter()
            for work in works:
                if work.group is not None:
                    reader.add(work.group, work.settings.sampling)
            for _ in reader.steps():
                if live:
                    yield reader.answers
            reports = reader.reports()
        finally:
            reader.abort()
            self._loaded.call_workers(DROP_STATE, [work.name for work in works])
        clock = (begun, prepared, reader.first or prepared, time.perf_counter())
        yield self._outcomes(works, reader.answers, reports, clock)

    def _prepare(self, works: Sequence[PendingAnswer], *, each: bool) -> None:
        """Rows of all requests; earlier passes of those under one plan run together."""
        for work in works:
            with self._kept(work, each=each):
                work.prompt = to_prompt(work.request, self._loaded.layout.placeholder)
        for plan in {id(work.settings.plan): work.settings.plan for work in works}.values():
            own = [w for w in works if w.settings.plan is plan and w.prompt is not None]
            try:
                self._take_looks(own, plan)
            except HalluDecodeError as error:
                if not each:
                    raise
                for work in own:  # one of them is at fault
                    if len(own) == 1:
                        work.error = error
                        break
                    with self._kept(work, each=each):
                        self._take_looks([work], plan)
        for work in works:
            if work.prepared is not None:
                with self._kept(work, each=each):
                    how, words = work.settings, self._words(work.settings)
                    given = (how.plan, how.sampling, work.name, words)
                    work.group = self._feeds.group(work.prepared, *given)

    @contextmanager
    def _kept(self, work: PendingAnswer, *, each: bool) -> Iterator[None]:
        try:
            yield
        except HalluDecodeError as error:
            if not each:
                raise
            work.error = error

    def _take_looks(self, works: Sequence[PendingAnswer], plan: Plan) -> None:
        jobs = self._jobs([(w.name, w.prompt, plan) for w in works if w.prompt is not None])
        for work, job in zip(works, jobs, strict=True):
            work.prepared = job

    def _words(self, ask: PendingRequest) -> dict[str, list[int]]:
        return {word: self._maker.feeder.word_ids(word) for word in ask.words}

    def _name(self, replica: int | None = None) -> str:
        """An unused name; requests take the replicas in turn, their earlier passes go along."""
        self._count += 1
        if replica is None:
            self._turn = replica = (self._turn + 1) % self._loaded.replicas
        return name_of(self._count, replica)

    def _jobs(self, asked: Sequence[tuple[str, Prompt, Plan]]) -> list[PreparedRequest]:
        """Rows of requests, in order; earlier passes of those under one plan run together."""
        made: dict[str, PreparedRequest] = {}
        for plan in {id(plan): plan for _, _, plan in asked}.values():
            self._send_artifacts(plan)
            own = [(name, prompt) for name, prompt, p in asked if p is plan]
            states = self._collector.states([p for _, p in own], plan, [n for n, _ in own])
            for (name, prompt), state in zip(own, states, strict=True):
                made[name] = self._maker.job(prompt, plan, state)
        return [made[name] for name, _, _ in asked]

    def _send_artifacts(self, plan: Plan) -> None:
        for part in plan.parts:
            made, text = part.model_info.artifact, hd_spec.format((part.strategy,))
            known = self._sent.pop(text, None)
            if known is not made:
                self._loaded.call_workers(SET_ARTIFACT, text, pack(made))
            if made is not None:
                self._sent[text] = made  # as the last used
        while len(self._sent) > KEPT:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            self._loaded.call_workers(SET_ARTIFACT, oldest, None)

    def _outcomes(
        self,
        works: Sequence[PendingAnswer],
        answers: Sequence[PartialAnswer],
        reports: Sequence[GroupReport],
        clock: tuple[float, float, float, float],
    ) -> list[Output | HalluDecodeError]:
        share = [(b - a) * 1000 / max(len(works), 1) for a, b in pairwise(clock)]
        made: list[Output | HalluDecodeError] = []
        start = 0
        for work in works:
            stop = start + (work.group.children if work.group is not None else 0)
            own = answers[start:stop], reports[start:stop]
            made.append(outcome(work, *own, share, self._explained))
            start = stop
        return made

    def _explained(
        self, work: PendingAnswer, answer: PartialAnswer, report: GroupReport
    ) -> Explanation | None:
        """One answer token by token, if that was asked for and there is an image."""
        prepared = work.prepared
        if explaining(work.settings.plan) is None or not prepared or not prepared.prompt.pictures:
            return None
        if len(report["readings"]) < len(answer.ids):
            raise HookNeverFired(
                f"{len(answer.ids)} tokens were written and {len(report['readings'])} of them "
                "read; explain with engine='hf'."
            )
        row, decode = prepared.rows["main"], self.processor.tokenizer.decode
        spans = rasters(row, self._maker.feeder, self._loaded.layout)
        read = [
            TokenReading(grounding, entropy, glance(torch.tensor(seen), row, spans))
            for grounding, entropy, seen in report["readings"][: len(answer.ids)]
        ]
        texts = (
            decode(answer.ids[: i + 1], skip_special_tokens=True).strip() for i in range(len(read))
        )
        ends = [len(settled(text, ())) for text in texts]
        return explanation(answer.text, answer.ids, ends, read)

    def _warned(self, output: Output, explain: Explain) -> Output:
        """With what the user should know about an explanation that is not whole."""
        pictured = output.explanation is not None
        more = warnings(explain, self._loaded.layout, pictured=pictured)
        return replace(output, warnings=output.warnings + more) if more else output
