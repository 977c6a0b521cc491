"""In a worker: vLLM's model runner V2 with our rows in it.

It keeps no object of a request: numbers lie in arrays by slot, pictures in its encoder cache, and a
preempted request is forgotten and comes again as a new one. So what we read of a row is noted when
it comes (`Noted`), and goes only when its request ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from halludecode.engines.vllm.worker import graphs, image_features, sampler_v2
from halludecode.engines.vllm.worker.runner import RunnerMixin
from halludecode.engines.vllm.worker.step_batch import RowPlace, ScheduledRow
from halludecode.engines.vllm.worker.tower import encoded, step_of


@dataclass
class Noted:
    """What is kept of a request.

    Args:
        sampling_params: As it came with them.
        num_prompt_tokens: Without what it had written before it was preempted.
        mm_features: Its pictures. vLLM 0.33 drops their pixels, in features of its own, once they
            are encoded, where a row may still have to read what they gave.
    """

    sampling_params: Any
    num_prompt_tokens: int
    mm_features: list[Any]

    def drop_pixels(self) -> None:
        """Its prompt is read; should it be preempted, they come again with it."""
        if any(feature.data is not None for feature in self.mm_features):
            self.mm_features = [replace(feature, data=None) for feature in self.mm_features]


class RunnerV2(RunnerMixin):
    """Put before vLLM's V2 runner among the bases of its class."""

    _hd_noted: dict[str, Noted]

    @property
    def hd_requests(self) -> Mapping[str, Noted]:
        """By vLLM request."""
        return self._hd_noted

    def hd_history(self, row: ScheduledRow) -> Tensor:
        """See `RunnerMixin.hd_history`; where the model is, and always up to date."""
        states: Any = self.req_states
        return states.all_token_ids.gpu[states.req_id_to_index[row.vllm_id], : row.stop].long()

    def hd_encode(self, vllm_id: str, picture: int) -> None:
        """As vLLM does with a picture that is scheduled, from the pixels we kept."""
        cache: Any = self.encoder_cache
        cache.mm_features[vllm_id] = list(self._hd_noted[vllm_id].mm_features)
        self.model_state.execute_mm_encoder({vllm_id: [picture]})

    @property
    def hd_tower_graphs(self) -> tuple[Any, str]:
        """See `RunnerMixin.hd_tower_graphs`."""
        return self.model_state.encoder_runner, "cudagraph_manager"

    def _hd_begin(self, scheduler_output: Any) -> None:
        super()._hd_begin(scheduler_output)
        graphs.hold_back_v2(self)

    def add_requests(self, scheduler_output: Any) -> None:
        """New rows, and preempted ones that come again."""
        for new in scheduler_output.scheduled_new_reqs:
            noted = Noted(new.sampling_params, new.prompt_len, list(new.mm_features))
            self._hd_noted[new.req_id] = noted
        super().add_requests(scheduler_output)

    def finish_requests(self, scheduler_output: Any) -> None:
        """VLLM forgets finished and preempted rows here; those that are only preempted we keep."""
        super().finish_requests(scheduler_output)
        for vllm_id in scheduler_output.finished_req_ids:
            if self._hd_noted.pop(vllm_id, None) is not None:
                self.hd_state.drop_row(vllm_id)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The batch of the step, which dummy runs have none of."""
        batch = self._hd_step = super().prepare_inputs(*args, **kwargs)
        for vllm_id, start in zip(batch.req_ids, batch.num_computed_tokens_np, strict=True):
            noted = self._hd_noted[vllm_id]
            if start >= noted.num_prompt_tokens:
                noted.drop_pixels()
        return batch

    def _hd_places(self, step: Any) -> Iterator[RowPlace]:
        return places(self._hd_noted, step)


def places(noted: Mapping[str, Noted], batch: Any) -> Iterator[RowPlace]:
    """Rows of vLLM's V2 batch, in its order.

    Args:
        noted: By vLLM request.
        batch: Its `InputBatch`. A row draws where this step reaches the last token that was known
            when it came, which after a preemption is not the last of its prompt.
    """
    firsts, starts = batch.query_start_loc_np.tolist(), batch.num_computed_tokens_np.tolist()
    counts, known = batch.num_scheduled_tokens.tolist(), batch.prefill_len_np.tolist()
    for index, vllm_id in enumerate(batch.req_ids):
        stop = starts[index] + counts[index]
        place = (index, firsts[index], starts[index], stop, stop >= known[index])
        yield RowPlace(vllm_id, noted[vllm_id], *place)


class EncoderOutputs(dict[str, Tensor]):
    """Features by picture; vLLM asks by `get` for what a row is about to read.

    Args:
        runner: Which makes again what was lost: a miss would end the engine.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self._runner = runner

    def get(self, identifier: str, default: Any = None) -> Any:
        """A picture's features."""
        if identifier not in self:
            image_features.encode_again(self._runner, identifier)
        return super().get(identifier, default)


def _model_state(cls: type) -> type:
    """VLLM's class of what belongs to a kind of model, with our pictures in it."""

    def encode(self: Any, step: Any) -> list[Tensor]:
        cls.execute_mm_encoder(self, step.scheduled_encoder_inputs)
        return []  # it has kept them

    def execute_mm_encoder(self: Any, scheduled: dict[str, list[int]]) -> None:
        """Encode pictures; edits of their features apply before a row reads them."""
        runner, features = self.hd_runner, self.encoder_cache.encoder_outputs
        edits = image_features.edits_of(runner, scheduled)
        fresh = {name: edit for name, edit in edits.items() if name not in features}
        runner.hd_capture_towers(scheduled)
        encoded(runner, step_of(scheduled), lambda step: encode(self, step))
        for name in fresh.keys() & features.keys():
            features[name] = image_features.apply(runner, name, fresh[name], features[name])

    def add_request(self: Any, req_index: int, new: Any) -> None:
        """Chosen image tokens form no raster: their positions stand in line, like words."""
        metadata = self.hd_runner.hd_state.metadata(new.req_id, new.sampling_params)
        if metadata is not None and metadata.in_line:
            new = replace(new, mm_features=[])
        cls.add_request(self, req_index, new)

    own = {"execute_mm_encoder": execute_mm_encoder, "add_request": add_request}
    # The class must be the only base: another layout of objects cannot be swapped in.
    return type("Hallu" + cls.__name__, (cls,), own)


def install(runner: Any) -> None:
    """Make a loaded runner ours, see `runner_v1.install`.

    Raises:
        HalluDecodeError: Something of it is not as we know it.
    """
    runner.__class__ = type("Hallu" + type(runner).__name__, (RunnerV2, type(runner)), {})
    runner._hd_noted = {}
    runner.hd_set_up()
    sampler_v2.install(runner)
    state = runner.model_state
    state.__class__, state.hd_runner = _model_state(type(state)), runner
    if runner.encoder_cache is not None:
        runner.encoder_cache.encoder_outputs = EncoderOutputs(runner)
