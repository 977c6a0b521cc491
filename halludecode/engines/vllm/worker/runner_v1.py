"""In a worker: vLLM's model runner V1 with our rows in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from halludecode.engines.vllm.worker import graphs, image_features, sampler_v1
from halludecode.engines.vllm.worker.runner import RunnerMixin
from halludecode.engines.vllm.worker.step_batch import RowPlace, ScheduledRow
from halludecode.engines.vllm.worker.tower import encoded, step_of


class RunnerV1(RunnerMixin):
    """Put before vLLM's V1 runner among the bases of its class."""

    _hd_edits: image_features.Edits

    @property
    def hd_requests(self) -> Mapping[str, Any]:
        """VLLM's own states of requests, which outlive a preemption."""
        return self.requests

    def hd_history(self, row: ScheduledRow) -> Tensor | None:
        """See `RunnerMixin.hd_history`; with asynchronous scheduling it is not here yet."""
        if self.use_async_scheduling:
            return None
        return torch.tensor([*row.request.prompt_token_ids, *row.request.output_token_ids])

    def hd_encode(self, vllm_id: str, picture: int) -> None:
        """As vLLM does with a picture that is scheduled."""
        self._execute_mm_encoder(step_of({vllm_id: [picture]}))

    @property
    def hd_tower_graphs(self) -> tuple[Any, str]:
        """See `RunnerMixin.hd_tower_graphs`."""
        return self, "encoder_cudagraph_manager"

    def _hd_begin(self, scheduler_output: Any) -> None:
        super()._hd_begin(scheduler_output)
        self._hd_step = scheduler_output.num_scheduled_tokens or None

    def _hd_places(self, step: Mapping[str, int]) -> Iterator[RowPlace]:
        return places(self, step)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Rows still in prefill must not draw: their generators could not be put back on a CPU.

        vLLM draws for every row and discards what rows in prefill drew; it then winds the generator
        of a seeded request back, which those of a CPU cannot do and end the engine with. A row
        without a generator draws from the common one, so they are taken away until it has drawn.
        """
        batch: Any = self.input_batch
        discarded: Any = self.discard_request_mask.np
        generators, count = batch.generators, batch.num_reqs
        held = {i: generators.pop(i) for i in list(generators) if i < count and discarded[i]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(held)

    def _execute_mm_encoder(self, scheduler_output: Any) -> Any:
        """Encode pictures; edits of their features apply before they are kept."""
        scheduled = scheduler_output.scheduled_encoder_inputs
        self._hd_edits = image_features.edits_of(self, scheduled)
        self.hd_capture_towers(scheduled)
        return encoded(self, scheduler_output, super()._execute_mm_encoder)

    def _cache_encoder_output(self, mm_hash: str, output: Tensor, *args: Any) -> None:
        edit = self._hd_edits.get(mm_hash)
        if edit is not None:
            output = image_features.apply(self, mm_hash, edit, output)
        super()._cache_encoder_output(mm_hash, output, *args)

    def _get_encoder_output_from_cache(self, mm_hash: str) -> Tensor | None:
        """Features a row is about to read; a miss would end the engine, so they are made again."""
        stock = super()._get_encoder_output_from_cache
        features = stock(mm_hash)
        if features is None and image_features.encode_again(self, mm_hash):
            features = stock(mm_hash)
        return features

    def _init_mrope_positions(self, req_state: Any) -> None:
        """Chosen image tokens form no raster: their positions stand in line, like words."""
        metadata = self.hd_state.metadata(req_state.req_id, req_state.sampling_params)
        if metadata is not None and metadata.in_line:
            positions, delta = image_features.in_line(req_state)
            req_state.mrope_positions, req_state.mrope_position_delta = positions, delta
        else:
            super()._init_mrope_positions(req_state)

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        self.hd_state.drop_row(req_id)
        super()._on_request_state_removed(req_id, req_state)


def places(runner: Any, scheduled: Mapping[str, int]) -> Iterator[RowPlace]:
    """Rows of vLLM's V1 batch, in its order.

    Args:
        runner: Whose batch of the step stands.
        scheduled: Tokens to compute, by vLLM request.
    """
    batch, first = runner.input_batch, 0
    for index, vllm_id in enumerate(batch.req_ids):
        start, count = int(batch.num_computed_tokens_cpu[index]), scheduled[vllm_id]
        samples = not bool(runner.discard_request_mask.np[index])
        place = (index, first, start, start + count, samples)
        yield RowPlace(vllm_id, runner.requests[vllm_id], *place)
        first += count


def install(runner: Any) -> None:
    """Make a loaded runner ours.

    Raises:
        HalluDecodeError: Something of it is not as we know it.
    """
    # vLLM names the runner's class in the code that makes it and has no option for another. An
    # instance may change its class where both have the same layout in memory, which a subclass
    # without slots has; it is done before the first forward, so none runs without our methods.
    runner.__class__ = type("Hallu" + type(runner).__name__, (RunnerV1, type(runner)), {})
    runner._hd_edits = {}
    runner.hd_set_up()
    sampler_v1.install(runner)
    graphs.hold_back(runner)
