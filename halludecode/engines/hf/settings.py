"""The Hugging Face engine under many settings at once: what they agree in is computed once."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress

from halludecode.core import spec as hd_spec
from halludecode.core.errors import HalluDecodeError, InvalidRequest, InvalidScores, OutOfMemory
from halludecode.core.plan import Plan, united
from halludecode.core.prompt import Prompt
from halludecode.engines.api import Explain, Output, Request, Sampling
from halludecode.engines.base import LocalEngine
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.decode_loop import AnswerState, DecodeLoop
from halludecode.engines.hf.hooks import attention_set
from halludecode.engines.hf.kept_rows import Prefix
from halludecode.engines.hf.model import HFModel
from halludecode.engines.hf.shared_rows import RowsOfOne, SharedRows, sharing
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest


class SharingEngine(LocalEngine):
    """An engine whose settings may share a batch, see `shared_rows`."""

    batch_size: int
    hf_model: HFModel
    prefixes: LRU[Prefix]

    @abstractmethod
    def prepare(
        self, prompts: Sequence[Prompt], plan: Plan, *, reuse: bool = False, main_only: bool = False
    ) -> list[PreparedRequest]:
        """Rows of some requests."""

    @abstractmethod
    def reuses_prefixes(self, prompts: Sequence[Prompt], plan: Plan) -> bool:
        """Whether image prefixes are kept for these."""

    @abstractmethod
    def _check_length(self, requests: Sequence[PreparedRequest]) -> None:
        """Raise for prompts that the model's context does not hold."""

    @abstractmethod
    def _outputs(
        self,
        requests: Sequence[PreparedRequest],
        plan: Plan,
        sampling: Sampling,
        answers: Sequence[AnswerState],
        clock: Sequence[float],
        explain: Explain,
    ) -> list[Output]:
        """Finished answers, as the user gets them."""

    def generate_settings(
        self,
        requests: Sequence[Request],
        strategies: Sequence[hd_spec.Spec | Plan],
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[list[Output | HalluDecodeError]]:
        """Per strategy one output or error per request; rows they have in common run once."""
        sampling, plans = sampling or Sampling(), [self.plan(each) for each in strategies]
        outcomes: list[list[Output | HalluDecodeError]] = [[] for _ in plans]
        for group in sharing(plans):
            outputs = None
            if len(group) > 1 and sampling.n == 1 and requests:
                # What fails together is asked again apart, so that whoever failed is told.
                with suppress(InvalidRequest, InvalidScores, OutOfMemory):
                    outputs = self._together(
                        requests, [plans[i] for i in group], sampling, score_words
                    )
            for place, i in enumerate(group):
                outcomes[i] = (
                    list(outputs[place])
                    if outputs
                    else self.generate_each(requests, plans[i], sampling, score_words=score_words)
                )
        return outcomes

    def _together(
        self,
        requests: Sequence[Request],
        plans: Sequence[Plan],
        sampling: Sampling,
        score_words: Sequence[str],
    ) -> list[list[Output]]:
        """Outputs of plans that share a batch, in chunks of as many rows as one of them has."""
        prompts = [self.prompt_of(request) for request in requests]
        plan, _ = united(plans)
        size = max(1, self.batch_size * max(len(p.rows) for p in plans) // len(plan.rows))
        reuse = self.reuses_prefixes(prompts, plan)
        given = (sampling, self.end_tokens, self.inputs.scored_words(score_words), self.context)
        rules = self.token_rules(sampling)

        def make_loop(rows: RowsOfOne) -> DecodeLoop:
            return DecodeLoop(rows, *given, rules=rules)

        outputs: list[list[Output]] = [[] for _ in plans]
        for at in range(0, len(prompts), size):
            clock = [time.perf_counter()]
            with self.guard(), attention_set(self.hf_model.model, bool(plan.attending)):
                prepared = self.prepare(prompts[at : at + size], plan, reuse=reuse)
                self._check_length(prepared)
                clock.append(time.perf_counter())
                batch = Batch(self.hf_model, self.row_builder, plan, prepared)
                logits = batch.prefill(self.prefixes if reuse else None)
                clock.append(time.perf_counter())
                shared = SharedRows(
                    plans, batch, lambda rows: DecodeLoop(rows, *given, rules=rules)
                )
                shared.run(logits, sampling.max_new_tokens)
            clock.append(time.perf_counter())
            share = [clock[0] + (moment - clock[0]) / len(plans) for moment in clock]
            for k, own in enumerate(plans):
                answers = shared.loops[k].answers
                of = shared.requests[k]
                outputs[k] += self._outputs(of, own, sampling, answers, share, False)
        return outputs
