"""The Hugging Face engine: any number of requests, under any strategy, in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from halludecode.calibration.calibrator import Calibrator, Samples
from halludecode.core import spec as hd_spec
from halludecode.core.artifact import Artifact
from halludecode.core.errors import HalluDecodeError, InvalidModel, InvalidRequest, OutOfMemory
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt
from halludecode.engines import HF_PROVIDES
from halludecode.engines.api import Chunk, Explain, Output, Request, Sampling, Timings
from halludecode.engines.explain import probed, warnings
from halludecode.engines.hf.activations import ActivationCollector
from halludecode.engines.hf.batch import Batch, Prefix
from halludecode.engines.hf.beam_loop import BeamLoop, check_search
from halludecode.engines.hf.decode_loop import AnswerState, DecodeLoop
from halludecode.engines.hf.hooks import attention_set, lock_of
from halludecode.engines.hf.model import HFModel
from halludecode.engines.inputs.chat import to_prompt
from halludecode.engines.inputs.processor import LRU, InputProcessor
from halludecode.engines.inputs.rows import PreparedRequest, Row, RowBuilder, with_embeds
from halludecode.engines.outputs import effect_of, settled, shower
from halludecode.models.families import check_family, family_of
from halludecode.models.loading import load_model, model_digest

DEFAULT_BATCH = 16


class HFEngine:
    """A loaded transformers model that answers requests under any strategy.

    Args:
        model: Hub id, path, "testbed", or a loaded model (then ``processor`` is needed).
        processor: The processor of a model given as an object.
        batch_size: Most requests in flight at once; extra rows come on top.
        prefix_cache_mb: Memory for image-prefix KV kept between batches; 0 switches reuse off.
        artifacts: Folder of what `calibrate` made; None is the user's own (`hf.artifacts`).
        **load_args: dtype, device, device_map, revision, trust_remote_code and whatever
            `from_pretrained` takes.

    Raises:
        InvalidModel: The model cannot be loaded or its family has no layout.
    """

    name = "hf"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        batch_size: int | None = None,
        prefix_cache_mb: float = 1024,
        artifacts: str | Path | None = None,
        **load_args: Any,
    ) -> None:
        if isinstance(model, str):
            self.model_id = model
            self.model, self.processor = load_model(model, **load_args)
        else:
            if not hasattr(model, "config") or processor is None:
                raise InvalidModel(
                    "A model given as an object needs its processor: hd.load(model, processor=...)."
                )
            self.model_id = getattr(model.config, "_name_or_path", "") or type(model).__name__
            self.model, self.processor = model, processor
        if batch_size is not None and batch_size < 1:
            raise InvalidRequest(f"batch_size={batch_size}: it must be at least 1.")
        self.batch_size = batch_size or DEFAULT_BATCH
        layout = family_of(self.model.config)
        self.provides = HF_PROVIDES - layout.lacks.keys()
        self.net = HFModel(self.model, layout)
        feeder = InputProcessor(self.processor, self.model.config, layout)
        self._maker = RowBuilder(feeder, shower(self.processor, layout))
        self._prefixes: LRU[Prefix] = LRU(prefix_cache_mb * 1e6, lambda p: p.size)
        self._reuse = prefix_cache_mb > 0 and not layout.unshared
        self._collector = ActivationCollector(self.net, self._maker, self._prefixes)
        self._model_info = self.net.model_info()
        self._plans: dict[str, Plan] = {}
        self._calibrator = Calibrator(self._collector, artifacts)

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
        """Answers in the order of the requests.

        Args:
            requests: One request or any number of them.
            strategy: Spec string, strategy instance, YAML form, or a plan of this engine.
            sampling: How tokens are drawn; greedy by default.
            score_words: Words whose first-step combined scores, without plausibility mask, are
                wanted (``Output.scores``).
            explain: True gives what each token owed to the picture (``Output.explanation``) at the
                cost of the image-free row, which m3id and pai have anyway; "maps" also where the
                attention lay. The tokens are the same.

        Raises:
            UnknownStrategy, InvalidParameter, UnsupportedStrategy: Before any token is produced.
            InvalidRequest: A prompt or picture cannot be used.
            HookNeverFired: The model did not call a declared hook.
            OutOfMemory: The sentence names a batch size to try.
        """
        wanted = [requests] if isinstance(requests, Request) else list(requests)
        sampling = sampling or Sampling()
        plan = strategy if isinstance(strategy, Plan) else self.plan(strategy)
        check_search(plan, sampling)
        prompts = [to_prompt(r, self.net.layout.placeholder) for r in wanted]
        reuse = self._worth_reusing(prompts, plan)
        outputs: list[Output] = []
        attends = bool(explain or plan.attending)
        with self._guard(), attention_set(self.model, attends):
            for at in range(0, len(prompts), self.batch_size):
                chunk = prompts[at : at + self.batch_size]
                *_, last = self._write(chunk, plan, sampling, score_words, explain, reuse=reuse)
                outputs += last
        return outputs

    def stream(
        self, request: Request, strategy: hd_spec.Spec = "greedy", sampling: Sampling | None = None
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last chunk carries the `Output`.

        A search over beams gives its answer in one piece.
        """
        sampling = sampling or Sampling()
        if sampling.n != 1:
            raise InvalidRequest("stream() writes one answer; use generate() for n > 1.")
        plan = self.plan(strategy)
        check_search(plan, sampling)
        if plan.search is not None:  # beams settle on an answer at its end
            output = self.generate([request], plan, sampling)[0]
            yield Chunk(output.text, output.token_ids, output)
            return
        prompt = to_prompt(request, self.net.layout.placeholder)
        sent, count = "", 0
        for state in self._write([prompt], plan, sampling, (), reuse=False):
            if state and isinstance(state[0], Output):
                yield Chunk(state[0].text[len(sent) :], state[0].token_ids[count:], state[0])
                return
            answer: AnswerState = state[0]
            ready = settled(answer.text, sampling.stop)
            if ready.startswith(sent) and len(ready) > len(sent):
                yield Chunk(ready[len(sent) :], tuple(answer.ids[count:]))
                sent, count = ready, len(answer.ids)

    def rows(self, request: Request, strategy: hd_spec.Spec = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (earlier passes are run)."""
        plan = self.plan(strategy)
        with self._guard():
            job = self._jobs([to_prompt(request, self.net.layout.placeholder)], plan, reuse=False)[
                0
            ]
            made: dict[str, Row] = {}
            for name, row in job.rows.items():
                edits = any(feed.features is not None for feed in row.feeds)
                made[name] = with_embeds(row, self.net.features(row.feeds)) if edits else row
        return made

    def plan(self, strategy: hd_spec.Spec, *, skip_off: bool = True) -> Plan:
        """Compile a strategy for this model; an optional artifact is made on first use."""
        parts = tuple(self._calibrator.pinned(self, part) for part in hd_spec.parse(strategy))
        key = f"{hd_spec.format(parts)}|{[type(p).__qualname__ for p in parts]}|{skip_off}"
        if key not in self._plans:
            found = {hd_spec.format((p,)): self._calibrator.artifact(self, p) for p in parts}
            plan = compile_plan(
                parts,
                self._model_info,
                HF_PROVIDES,
                engine=self.name,
                skip_off=skip_off,
                artifacts={text: a for text, a in found.items() if a is not None},
                model=self.model_id,
            )
            check_family(self.model.config, plan.needs, plan.canonical)
            self._plans[key] = plan
        return self._plans[key]

    def calibrate(
        self, strategy: hd_spec.Spec, samples: Samples | None = None, **how: Any
    ) -> Artifact:
        """Make and keep a strategy's artifact; from then on this engine uses it.

        Args:
            strategy: One strategy, with the parameters its artifact depends on.
            samples: Requests, each with "yes", "no", a caption or None; None is eight built-in
                prompts without answers.
            **how: See `Calibrator.make`: source, seed, progress.

        Raises:
            InvalidParameter: Nothing to calibrate, or the samples lack what the strategy needs.
            InvalidData: The artifact cannot be written.
        """
        made = self._calibrator.make(self, strategy, samples, **how)
        self._plans.clear()
        return made

    @cached_property
    def digest(self) -> str:
        """Identity of the weights."""
        return model_digest(self.model)

    def describe(self) -> dict[str, Any]:
        """Model, weights digest, dtype, device and library versions, for run records."""
        import transformers

        return {
            "model": self.model_id,
            "model_digest": self.digest,
            "family": self.model.config.model_type,
            "engine": self.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.net.device),
            "image_processor": type(self.processor.image_processor).__name__,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    # Private --------------------------------------------------------------------------------------
    def _write(
        self,
        prompts: Sequence[Prompt],
        plan: Plan,
        sampling: Sampling,
        words: Sequence[str],
        explain: Explain = False,
        *,
        reuse: bool,
    ) -> Iterator[list[Any]]:
        """Yields the live answers after every token, at the end the outputs."""
        clock = [time.perf_counter()]
        acting = probed(plan, self._model_info, explain)
        with self._guard():
            jobs = self._jobs(prompts, acting, reuse=reuse)
            self._check_length(jobs)
            clock.append(time.perf_counter())
            batch = Batch(self.net, self._maker, acting, jobs)
            logits = batch.prefill(self._prefixes if reuse else None)
        clock.append(time.perf_counter())
        ids = {word: self._maker.feeder.word_ids(word) for word in words}
        writer = DecodeLoop if plan.search is None else BeamLoop
        loop = writer(batch, sampling, self._eos(), ids, self._context())
        steps = loop.run(logits)
        while True:
            with self._guard():
                live = next(steps, None)
            if live is None:
                break
            yield live
        clock.append(time.perf_counter())
        yield self._outputs(jobs, plan, sampling, loop.answers, clock, explain)

    def _jobs(self, prompts: Sequence[Prompt], plan: Plan, *, reuse: bool) -> list[PreparedRequest]:
        states = self._collector.states(prompts, plan.parts, self.batch_size, reuse=reuse)
        return [self._maker.job(p, plan, state) for p, state in zip(prompts, states, strict=True)]

    def _outputs(
        self,
        jobs: Sequence[PreparedRequest],
        plan: Plan,
        sampling: Sampling,
        answers: Sequence[AnswerState],
        clock: Sequence[float],
        explain: Explain,
    ) -> list[Output]:
        share = [(b - a) * 1000 / len(jobs) for a, b in pairwise(clock)]
        outputs: list[Output] = []
        for r, job in enumerate(jobs):
            own = [answer for answer in answers if answer.request == r]
            first = own[0]
            effect, warning = effect_of(plan, first, job)
            pictured = bool(job.prompt.pictures)
            warning += warnings(explain, self.net.layout, pictured=pictured)
            tokens = sum(len(answer.ids) for answer in own)
            outputs.append(
                Output(
                    choices=tuple(answer.choice(sampling) for answer in own),
                    strategy=plan.canonical,
                    effect=effect,
                    timings=Timings(*share, tokens=tokens),
                    rows=tuple(job.rows),
                    scores=first.scores,
                    warnings=warning,
                )
            )
        return outputs

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The model's lock, no gradients, and memory errors as one sentence."""
        try:
            with lock_of(self.model), torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error) from None
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, HalluDecodeError) or not _is_memory(error):
                raise
            raise self._out_of_memory(error) from None

    def _out_of_memory(self, error: Exception) -> OutOfMemory:
        self._prefixes.clear()
        first = str(error).splitlines()[0][:160] if str(error) else "out of memory"
        if self.batch_size > 1:
            cure = f"Try batch_size={max(1, self.batch_size // 2)} (now {self.batch_size})."
        else:
            cure = "batch_size is 1 already: use a smaller image, model or dtype."
        return OutOfMemory(f"Out of memory on {self.net.device}: {first}. {cure}")

    def _worth_reusing(self, prompts: Sequence[Prompt], plan: Plan) -> bool:
        """Reuse pays when some picture is asked about more than once."""
        keys = [tuple(p.key for p in prompt.pictures) for prompt in prompts if prompt.pictures]
        return self._reuse and plan.reusable and len(set(keys)) < len(keys)

    def _check_length(self, jobs: Sequence[PreparedRequest]) -> None:
        limit = self._context()
        for job in jobs:
            for row in job.rows.values():
                if len(row.input_ids) >= limit:
                    raise InvalidRequest(
                        f"The prompt has {len(row.input_ids)} tokens (pictures included), the "
                        f"model's context is {limit}; shorten the prompt or give fewer or smaller "
                        "images."
                    )

    def _context(self) -> int:
        return self.net.context

    def _eos(self) -> list[int]:
        return self.net.eos(self._maker.feeder.tokenizer)


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )
