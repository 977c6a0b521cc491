"""The Hugging Face engine: any number of requests, under any strategy, in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.errors import (
    HalluDecodeError,
    InvalidModel,
    InvalidRequest,
    OutOfMemory,
)
from halludecode.core.plan import Plan
from halludecode.core.prompt import Prompt
from halludecode.engines import HF_PROVIDES
from halludecode.engines.api import (
    Explain,
    ExtraRows,
    Output,
    Request,
    Sampling,
    Timings,
)
from halludecode.engines.base import Writing, listed
from halludecode.engines.explain import probed, warnings
from halludecode.engines.hf import soft_prompt
from halludecode.engines.hf.activations import ActivationCollector
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.beam_loop import BeamLoop, check_search
from halludecode.engines.hf.decode_loop import AnswerState, DecodeLoop
from halludecode.engines.hf.hooks import attention_set, lock_of
from halludecode.engines.hf.kept_rows import Prefix
from halludecode.engines.hf.late_rows import LateRows
from halludecode.engines.hf.model import HFModel
from halludecode.engines.hf.settings import SharingEngine
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest, Row, with_embeds
from halludecode.engines.outputs import effect_of
from halludecode.models.checkpoints import complete_processor
from halludecode.models.families import family_of
from halludecode.models.info import end_tokens
from halludecode.models.loading import inner_model, load_model, model_digest

DEFAULT_BATCH = 16


class HFEngine(SharingEngine):
    """A loaded transformers model that answers requests under any strategy.

    Args:
        model: Hub id, path, "testbed", or a loaded model (then ``processor`` is needed); what wraps
            one (`torch.compile`, PEFT, DataParallel) is looked into, see `inner_model`.
        processor: The processor of a model given as an object.
        batch_size: Most requests in flight at once; extra rows come on top.
        prefix_cache_mb: Memory for image-prefix KV kept between batches; 0 switches reuse off.
        artifacts: Folder of what `calibrate` made; None is the user's own, see
            `ArtifactStore`.
        extra_rows: "on_demand" lets rows beside main begin at the first token that they can
            change, "always" with the prompt; the tokens are the same.
        **load_args: dtype, device, device_map, revision, trust_remote_code and whatever
            `from_pretrained` takes.

    Attributes:
        model: The transformers model, untouched.
        hf_model: The same, as the engine runs it.
        prefixes: Image-prefix KV kept between batches.

    Raises:
        InvalidModel: The model cannot be loaded or its family has no layout.
    """

    name = "hf"
    batch_size: int

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        batch_size: int | None = None,
        prefix_cache_mb: float = 1024,
        artifacts: str | Path | None = None,
        extra_rows: ExtraRows = "on_demand",
        **load_args: Any,
    ) -> None:
        if isinstance(model, str):
            model_id = model
            self.model, processor = load_model(model, **load_args)
            inner = self.model
        else:
            if processor is None:
                raise InvalidModel(
                    "A model given as an object needs its processor: hd.load(model, processor=...)."
                )
            inner = inner_model(model)
            family_of(inner.config)
            complete_processor(processor, inner.config)
            model_id = getattr(inner.config, "_name_or_path", "") or type(inner).__name__
            self.model = model
        if batch_size is not None and batch_size < 1:
            raise InvalidRequest(f"batch_size={batch_size}: it must be at least 1.")
        super().__init__(model_id, inner.config, processor, HF_PROVIDES, artifacts, extra_rows)
        self.batch_size = batch_size or DEFAULT_BATCH
        self.hf_model = HFModel(inner, self.family)
        self.prefixes: LRU[Prefix] = LRU(prefix_cache_mb * 1e6, lambda p: p.size)
        self._reuse = prefix_cache_mb > 0 and not self.family.unshared
        self._collector = ActivationCollector(self.hf_model, self.row_builder, self.prefixes)

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
        sampling, plan = sampling or Sampling(), self.plan(strategy)
        check_search(plan, sampling)
        prompts = [self.prompt_of(request) for request in listed(requests)]
        reuse = self.reuses_prefixes(prompts, plan)
        outputs: list[Output] = []
        attends = bool(explain or plan.attending)
        with self.guard(), attention_set(self.hf_model.model, attends):
            for at in range(0, len(prompts), self.batch_size):
                chunk = prompts[at : at + self.batch_size]
                *_, last = self.write(chunk, plan, sampling, score_words, explain, reuse=reuse)
                outputs += last
        return outputs

    def rows(self, request: Request, strategy: hd_spec.Spec | Plan = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (earlier passes are run)."""
        plan = self.plan(strategy)
        with self.guard():
            prepared = self.prepare([self.prompt_of(request)], plan)[0]
            rows: dict[str, Row] = {}
            for name, row in prepared.rows.items():
                edits = any(image.features is not None for image in row.images)
                rows[name] = with_embeds(row, self.hf_model.features(row.images)) if edits else row
        return rows

    def activations(self, request: ActivationRequest, *, remember: bool = True) -> Activations:
        """What a pass of the plain model keeps."""
        with self.guard():
            return self._collector.collect(request, remember=remember)

    def train_soft_prompt(
        self, pairs: Sequence[tuple[Prompt, str]], *, seed: int, progress: bool
    ) -> dict[str, Tensor]:
        """Train vectors that stand where a picture's features would; see `soft_prompt`."""
        options = {"seed": seed, "at_once": self.batch_size, "progress": progress}
        return soft_prompt.train(self.hf_model, self.row_builder, pairs, **options)

    @cached_property
    def digest(self) -> str:
        """Identity of the weights."""
        return model_digest(self.hf_model.model)

    @property
    def context(self) -> int:
        """Most tokens a row may have."""
        return self.hf_model.context

    @property
    def end_tokens(self) -> list[int]:
        """End-of-sequence ids."""
        return end_tokens(self.hf_model.model.generation_config, self.tokenizer)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """The model's lock, no gradients, and memory errors as one sentence."""
        try:
            with lock_of(self.hf_model.model), torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error) from None
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, HalluDecodeError) or not _is_memory(error):
                raise
            raise self._out_of_memory(error) from None

    def clear_caches(self) -> None:
        """Forget all pictures: their features, prefixes, and what passes before answers kept."""
        self.hf_model.clear_features()
        self.prefixes.clear()
        self._collector.clear()

    # Batches --------------------------------------------------------------------------------------
    def prepare(
        self,
        prompts: Sequence[Prompt],
        plan: Plan,
        *,
        reuse: bool = False,
        main_only: bool = False,
    ) -> list[PreparedRequest]:
        """Rows of some requests, passes before their answers run; or their main rows alone."""
        needed = [not (main_only and part.late_activations) for part in plan.parts]
        parts = [part for part, now in zip(plan.parts, needed, strict=True) if now]
        states = self._collector.states(prompts, parts, self.batch_size, reuse=reuse)
        spread = [iter(state) for state in states]
        states = [[next(own) if now else {} for now in needed] for own in spread]
        return [
            self.row_builder.prepare(prompt, plan, state, main_only=main_only)
            for prompt, state in zip(prompts, states, strict=True)
        ]

    def collect(
        self, requests: Sequence[ActivationRequest], *, reuse: bool = False
    ) -> list[Activations]:
        """What passes of the plain model keep, those of one kind run in batches."""
        with self.guard():
            self._collector.run(requests, self.batch_size, reuse=reuse)
            return [self._collector.collect(request) for request in requests]

    def reuses_prefixes(self, prompts: Sequence[Prompt], plan: Plan) -> bool:
        """Whether image prefixes are kept for these: some picture is asked about more than once."""
        keys = [tuple(p.key for p in prompt.pictures) for prompt in prompts if prompt.pictures]
        return self._reuse and plan.main_reusable and len(set(keys)) < len(keys)

    def write(
        self,
        prompts: Sequence[Prompt],
        plan: Plan,
        sampling: Sampling,
        score_words: Sequence[str] = (),
        explain: Explain = False,
        *,
        reuse: bool = False,
    ) -> Iterator[list[Any]]:
        """Answer one batch: yields the live answers after every token, at the end the outputs."""
        clock = [time.perf_counter()]
        rules = self.token_rules(sampling)
        acting = probed(plan, self.model_info, explain)
        with self.guard():
            late = self._late_rows(prompts, acting, reuse=reuse)
            requests = self.prepare(prompts, acting, reuse=reuse, main_only=late is not None)
            self._check_length(requests)
            clock.append(time.perf_counter())
            batch = Batch(self.hf_model, self.row_builder, acting, requests)
            logits = batch.prefill(self.prefixes if reuse else None)
        clock.append(time.perf_counter())
        word_ids = self.inputs.scored_words(score_words)
        written = (batch, sampling, self.end_tokens, word_ids, self.context)
        if plan.search is None:
            loop = DecodeLoop(*written, rules=rules, late=late)
        else:
            loop = BeamLoop(*written, rules=rules)
        steps = loop.run(logits)
        while True:
            with self.guard():
                live = next(steps, None)
            if live is None:
                break
            yield live
        clock.append(time.perf_counter())
        if late is not None:
            requests = [late.started.get(r, request) for r, request in enumerate(requests)]
        yield self._outputs(requests, plan, sampling, loop.answers, clock, explain)

    def _late_rows(self, prompts: Sequence[Prompt], plan: Plan, *, reuse: bool) -> LateRows | None:
        """Rows beside main that wait until they are needed; None where all run from the start."""
        if self.extra_rows == "always" or not plan.can_wait:
            return None

        def prepare(numbers: Sequence[int]) -> list[PreparedRequest]:
            requests = self.prepare([prompts[i] for i in numbers], plan, reuse=reuse)
            self._check_length(requests)
            return requests

        prefixes = self.prefixes if reuse else None
        return LateRows(self.hf_model, self.row_builder, plan, prepare, prefixes)

    # What `LocalEngine` asks ----------------------------------------------------------------------
    def _written(
        self, request: Request, plan: Plan, sampling: Sampling
    ) -> Iterator[Writing | Output]:
        check_search(plan, sampling)
        if plan.search is not None:  # beams settle on an answer at its end
            yield self.generate([request], plan, sampling)[0]
            return
        for answers in self.write([self.prompt_of(request)], plan, sampling):
            yield answers[0]

    def _hardware(self) -> tuple[Any, str, Mapping[str, str]]:
        return self.hf_model.model.dtype, str(self.hf_model.device), {}

    # Private --------------------------------------------------------------------------------------
    def _outputs(
        self,
        requests: Sequence[PreparedRequest],
        plan: Plan,
        sampling: Sampling,
        answers: Sequence[AnswerState],
        clock: Sequence[float],
        explain: Explain,
    ) -> list[Output]:
        share = [(b - a) * 1000 / len(requests) for a, b in pairwise(clock)]
        outputs: list[Output] = []
        for r, request in enumerate(requests):
            own = [answer for answer in answers if answer.request == r]
            first = own[0]
            effect, warning = effect_of(plan, first, request)
            pictured = bool(request.prompt.pictures)
            warning += warnings(explain, self.family, pictured=pictured)
            tokens = sum(len(answer.ids) for answer in own)
            outputs.append(
                Output(
                    choices=tuple(answer.choice(sampling) for answer in own),
                    strategy=plan.canonical,
                    effect=effect,
                    timings=Timings(*share, tokens=tokens),
                    rows=tuple(request.rows),
                    scores=first.scores,
                    decided=first.decided,
                    warnings=warning,
                )
            )
        return outputs

    def _out_of_memory(self, error: Exception) -> OutOfMemory:
        self.prefixes.clear()
        first = str(error).splitlines()[0][:160] if str(error) else "out of memory"
        if self.batch_size > 1:
            cure = f"Try batch_size={max(1, self.batch_size // 2)} (now {self.batch_size})."
        else:
            cure = "batch_size is 1 already: use a smaller image, model or dtype."
        return OutOfMemory(f"Out of memory on {self.hf_model.device}: {first}. {cure}")

    def _check_length(self, requests: Sequence[PreparedRequest]) -> None:
        limit = self.context
        for request in requests:
            for row in request.rows.values():
                if len(row.input_ids) >= limit:
                    raise InvalidRequest(
                        f"The prompt has {len(row.input_ids)} tokens (pictures included), the "
                        f"model's context is {limit}; shorten the prompt or give fewer or smaller "
                        "images."
                    )


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )
