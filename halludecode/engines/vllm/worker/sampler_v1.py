"""In a worker: the sampler of vLLM's V1 runner, with groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.sample.sampler import Sampler

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.worker.sampler import Current, GroupSampling


class Noise(nn.Module):
    """In place of vLLM's top-k/top-p sampler: our noise for our rows, its own for others.

    Args:
        stock: What vLLM uses.
        sampler: Whose current step is sampled.
    """

    def __init__(self, stock: nn.Module, sampler: GroupSampler) -> None:
        super().__init__()
        self.stock = stock
        self._sampler = [sampler]  # in a list: it is this module's parent

    def forward(
        self,
        logits: Tensor,
        generators: dict[int, torch.Generator],
        k: Tensor | None,
        p: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens int64 [rows], as the stock sampler gives them."""
        ours = self._sampler[0].drawn(logits, k, p)
        tokens, processed = self.stock(logits, generators, k, p)
        if ours is not None:
            at, drawn = ours
            tokens = tokens.long()
            tokens[at] = drawn
        return tokens, processed


class GroupSampler(GroupSampling, Sampler):
    """vLLM's sampler; `install` makes an existing one of this class."""

    def forward(
        self,
        logits: Tensor,
        sampling_metadata: Any,
        predict_bonus_token: bool = False,
        logprobs_mode_override: Any = None,
    ) -> Any:
        """Combine every complete group into its main row, then sample as vLLM does."""
        self.current = Current()
        batch = self.runner.hd_step_batch()
        rows = self.runner.input_batch.num_reqs
        # vLLM also calls its sampler to profile, with logits of no row.
        if batch is not None and logits is not None and logits.shape[0] == rows:
            written = sampling_metadata.output_token_ids  # empty where no row of vLLM's needs it
            logits = self.combined(logits, batch, lambda row: written[row.index] if written else ())
        return super().forward(
            logits, sampling_metadata, predict_bonus_token, logprobs_mode_override
        )

    def sample(
        self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The main row's token is every row's token."""
        tokens, processed = super().sample(logits, sampling_metadata, *args, **kwargs)
        self.settle(tokens)
        return tokens, processed

    def apply_temperature(self, logits: Tensor, temp: Tensor, all_random: bool) -> Tensor:
        """VLLM's own, but for our rows whose temperature it would not take."""
        ours = self.tempered(logits)
        logits = super().apply_temperature(logits, temp, all_random)
        for index, scores in ours:
            logits[index] = scores
        return logits


def install(runner: Any) -> None:
    """Make a runner's sampler a `GroupSampler`.

    Raises:
        HalluDecodeError: It is not vLLM's.
    """
    sampler = runner.sampler
    if type(sampler) is not Sampler:
        raise HalluDecodeError(
            f"vLLM's sampler is a {type(sampler).__name__}, which halludecode does not know; "
            "use the vllm version of this package's extras."
        )
    # The sampler is a module of vLLM's with what its options made of it; it goes on being that, and
    # only what its methods do changes. `GroupSampler` has no state that `__init__` would have to
    # set beside the next line's.
    sampler.__class__ = GroupSampler
    sampler.runner, sampler.current = runner, Current()
    sampler.topk_topp_sampler = Noise(sampler.topk_topp_sampler, sampler)
