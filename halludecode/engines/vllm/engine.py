"""The vLLM engine: any number of requests, under any strategy, in one continuous batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from halludecode.core import spec as hd_spec
from halludecode.core.artifact import Artifact
from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt
from halludecode.engines import VLLM_PROVIDES
from halludecode.engines.base import Chunk, Output, Request, Sampling, Timings
from halludecode.engines.finish import effect_of, settled, shower
from halludecode.engines.hf.calibrate import Samples
from halludecode.engines.inputs import Feeder
from halludecode.engines.prompts import to_prompt
from halludecode.engines.rows import Job, Row, RowMaker
from halludecode.engines.vllm.answers import Answer, Reader
from halludecode.engines.vllm.feeds import Feeds, Group
from halludecode.engines.vllm.host import Host, HostCalibrator
from halludecode.engines.vllm.inside import error_class
from halludecode.engines.vllm.limits import check_plan
from halludecode.engines.vllm.load import Loaded, load_engine
from halludecode.engines.vllm.looks import Looker
from halludecode.engines.vllm.wire import pack
from halludecode.models.layout import check_family


@dataclass(frozen=True)
class Ask:
    """How one request is answered."""

    plan: Plan
    sampling: Sampling
    words: tuple[str, ...] = ()


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
        feeder = Feeder(self.processor, self._loaded.config, layout)
        self._maker = RowMaker(feeder, shower(self.processor, layout))
        self._feeds = Feeds(self._loaded, feeder)
        self._plans: dict[str, Plan] = {}
        self._count = 0
        self._looker = Looker(self._loaded, self._maker, self._feeds, self._name)
        self._host: Any = Host(self, self._loaded)
        looker: Any = self._looker
        self._calibrator = HostCalibrator(looker, artifacts)
        self._sent: dict[str, Any] = {}  # artifacts the workers have, by the part's text

    # Public ---------------------------------------------------------------------------------------
    def generate(
        self,
        requests: Request | Sequence[Request],
        strategy: hd_spec.Spec | Plan = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[Output]:
        """Answers in the order of the requests; all are handed to vLLM at once.

        Args:
            requests: One request or any number of them.
            strategy: Spec string, strategy instance, YAML form, or a plan of this engine.
            sampling: How tokens are drawn; greedy by default.
            score_words: Words whose first-step combined scores, without plausibility mask, are
                wanted (``Output.scores``).

        Raises:
            UnknownStrategy, InvalidParameter, UnsupportedStrategy: Before any token is produced.
            InvalidRequest: A prompt or picture cannot be used, or its rows exceed the capacity.
            HookNeverFired: The model did not call a declared hook.
        """
        wanted = [requests] if isinstance(requests, Request) else list(requests)
        plan = strategy if isinstance(strategy, Plan) else self.plan(strategy)
        asked = Ask(plan, sampling or Sampling(), tuple(score_words))
        *_, outputs = self._write([(request, asked) for request in wanted])
        return outputs

    def stream(
        self, request: Request, strategy: hd_spec.Spec = "greedy", sampling: Sampling | None = None
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last chunk carries the `Output`."""
        sampling = sampling or Sampling()
        if sampling.n != 1:
            raise InvalidRequest("stream() writes one answer; use generate() for n > 1.")
        sent, count = "", 0
        for state in self._write([(request, Ask(self.plan(strategy), sampling))], live=True):
            if isinstance(state[0], Output):
                yield Chunk(state[0].text[len(sent) :], state[0].token_ids[count:], state[0])
                return
            ready = settled(state[0].text, sampling.stop)
            if ready.startswith(sent) and len(ready) > len(sent):
                yield Chunk(ready[len(sent) :], tuple(state[0].ids[count:]))
                sent, count = ready, len(state[0].ids)

    def rows(self, request: Request, strategy: hd_spec.Spec = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (looks are taken)."""
        plan = self.plan(strategy)
        prompt, name = to_prompt(request, self._loaded.layout.placeholder), self._name()
        try:
            return dict(self._jobs([(name, prompt, plan)])[0].rows)
        finally:
            self._loaded.tell("hd_forget", [name])

    def plan(self, strategy: hd_spec.Spec, *, skip_off: bool = True) -> Plan:
        """Compile a strategy for this model; an optional artifact is made on first use."""
        given = hd_spec.parse(strategy)
        parts = tuple(self._calibrator.pinned(self._host, part) for part in given)
        key = f"{hd_spec.format(parts)}|{[type(p).__qualname__ for p in parts]}|{skip_off}"
        if key not in self._plans:
            found = {hd_spec.format((p,)): self._calibrator.artifact(self._host, p) for p in parts}
            plan = compile_plan(
                parts,
                self._loaded.facts,
                VLLM_PROVIDES,
                engine=self.name,
                skip_off=skip_off,
                artifacts={text: a for text, a in found.items() if a is not None},
                model=self.model_id,
            )
            check_family(self._loaded.config, plan.needs, plan.canonical)
            check_plan(plan, self._loaded.vllm_config)
            self._plans[key] = plan
        return self._plans[key]

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
        self, asked: Sequence[tuple[Request, Ask]], *, live: bool = False
    ) -> Iterator[list[Any]]:
        """Yields the answers after every step if ``live``, at the end the outputs."""
        begun = time.perf_counter()
        prompts = [to_prompt(r, self._loaded.layout.placeholder) for r, _ in asked]
        asks = [ask for _, ask in asked]
        names = [self._name() for _ in prompts]
        reader = Reader(self._loaded, live=live)
        try:
            plans = [ask.plan for ask in asks]
            jobs = self._jobs(list(zip(names, prompts, plans, strict=True)))
            groups = [
                self._feeds.group(job, ask.plan, ask.sampling, name, self._words(ask))
                for job, ask, name in zip(jobs, asks, names, strict=True)
            ]
            prepared = time.perf_counter()
            for group, ask in zip(groups, asks, strict=True):
                reader.add(group, ask.sampling)
            for _ in reader.steps():
                if live:
                    yield reader.answers
            notes = reader.notes()
        finally:
            reader.abort()
            self._loaded.tell("hd_forget", names)
        clock = (begun, prepared, reader.first or prepared, time.perf_counter())
        yield self._outputs(jobs, plans, groups, reader.answers, notes, clock)

    def _words(self, ask: Ask) -> dict[str, list[int]]:
        return {word: self._maker.feeder.word_ids(word) for word in ask.words}

    def _name(self) -> str:
        self._count += 1
        return f"hd{self._count}"

    def _jobs(self, asked: Sequence[tuple[str, Prompt, Plan]]) -> list[Job]:
        """Rows of requests, in order; looks of requests under one plan are taken together."""
        made: dict[str, Job] = {}
        for plan in {id(plan): plan for _, _, plan in asked}.values():
            self._send_artifacts(plan)
            own = [(name, prompt) for name, prompt, p in asked if p is plan]
            states = self._looker.states([p for _, p in own], plan, [n for n, _ in own])
            for (name, prompt), state in zip(own, states, strict=True):
                made[name] = self._maker.job(prompt, plan, state)
        return [made[name] for name, _, _ in asked]

    def _send_artifacts(self, plan: Plan) -> None:
        for part in plan.parts:
            made, text = part.facts.artifact, hd_spec.format((part.strategy,))
            if self._sent.get(text) is not made:
                self._loaded.tell("hd_artifact", text, pack(made))
                self._sent[text] = made

    def _outputs(
        self,
        jobs: Sequence[Job],
        plans: Sequence[Plan],
        groups: Sequence[Group],
        answers: Sequence[Answer],
        notes: Sequence[Mapping[str, Any]],
        clock: tuple[float, float, float, float],
    ) -> list[Output]:
        share = [(b - a) * 1000 / max(len(jobs), 1) for a, b in pairwise(clock)]
        outputs: list[Output] = []
        start = 0
        for job, plan, group in zip(jobs, plans, groups, strict=True):
            own = answers[start : start + group.children]
            told = notes[start : start + group.children]
            start += group.children
            for note in told:
                if note["error"]:
                    raise error_class(note["kind"])(note["error"])
            seen: Any = SimpleNamespace(**told[0])
            effect, warnings = effect_of(plan, seen, job)
            outputs.append(
                Output(
                    choices=tuple(answer.choice() for answer in own),
                    strategy=plan.canonical,
                    effect=effect if effect is None or effect >= 0 else None,
                    timings=Timings(*share, tokens=sum(len(a.ids) for a in own)),
                    rows=tuple(job.rows),
                    scores=told[0]["scores"],
                    warnings=warnings,
                )
            )
        return outputs
