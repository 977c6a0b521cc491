"""In a worker: the sampler of vLLM's V2 runner, with groups.

A model's `ModelState.custom_sampler` may put another in its place, but is asked before a worker can
put its own in, so the one that vLLM made becomes ours after loading, as on V1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.sample.states import SamplingStates

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.worker.sampler import Current, GroupSampling
from halludecode.engines.vllm.worker.step_batch import ScheduledRow


class GroupSamplerV2(GroupSampling, Sampler):
    """vLLM's sampler; `install` makes an existing one of this class."""

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """Combine every complete group into its main row, then sample as vLLM does."""
        self.current = Current()
        batch = self.runner.hd_step_batch()  # vLLM also profiles its sampler, outside of a step
        if batch is not None:
            logits = self.combined(logits, batch, self._written)
        return super().__call__(logits, input_batch)

    def _written(self, row: ScheduledRow) -> Sequence[int]:
        return self.runner.hd_history(row)[row.prompt :].tolist()

    def sample(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The main row's token is every row's token."""
        tokens, processed = super().sample(*args, **kwargs)
        self.settle(tokens)
        return tokens, processed

    def _sample_random(
        self,
        processed_logits: Tensor,
        expanded_idx_mapping: Tensor,
        idx_mapping_np: Any,
        pos: Tensor,
        top_k: Tensor | None,
        top_p: Tensor | None,
        *args: Any,
    ) -> tuple[Tensor, Tensor]:
        ours = self.drawn(processed_logits, top_k, top_p)
        tokens, processed = super()._sample_random(
            processed_logits, expanded_idx_mapping, idx_mapping_np, pos, top_k, top_p, *args
        )
        if ours is not None:
            at, drawn = ours
            tokens[at] = drawn
        return tokens, processed


class Temperatures(SamplingStates):
    """vLLM's numbers of all requests; `install` makes existing ones of this class."""

    sampler: GroupSamplerV2

    def apply_temperature(self, logits: Tensor, *args: Any) -> None:
        """VLLM's own, but for our rows whose temperature it would not take; in place."""
        ours = self.sampler.tempered(logits)
        super().apply_temperature(logits, *args)
        for index, scores in ours:
            logits[index] = scores


def install(runner: Any) -> None:
    """Make a runner's sampler a `GroupSamplerV2`.

    Raises:
        HalluDecodeError: It is not vLLM's.
    """
    sampler = runner.sampler
    if sampler is None:  # not the last of pipeline-parallel ranks
        return
    if type(sampler) is not Sampler:
        raise HalluDecodeError(
            f"vLLM's sampler is a {type(sampler).__name__}, which halludecode does not know: a "
            "model's own or a watermark's, or of another version than this package's extras."
        )
    sampler.__class__ = GroupSamplerV2
    sampler.runner, sampler.current = runner, Current()
    sampler.sampling_states.__class__ = Temperatures
    sampler.sampling_states.sampler = sampler
