"""In a worker: what our model runner has on both of vLLM's runners.

`runner_v1` and `runner_v2` say where each of them keeps a step's rows, and where it encodes
pictures; the rest of this package asks the methods here and knows neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.worker import graphs, hooks
from halludecode.engines.vllm.worker.attention import Checked
from halludecode.engines.vllm.worker.capture import capture_states, capture_tower
from halludecode.engines.vllm.worker.captured import Captured
from halludecode.engines.vllm.worker.forward_context import WorkerForward
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import RowPlace, ScheduledRow, StepBatch


class KnownRequest(Protocol):
    """What we read of a row, as the runner knows it."""

    sampling_params: Any
    num_prompt_tokens: int
    mm_features: list[Any]


class RunnerMixin:
    """What our model runner adds to vLLM's; its class is changed after loading.

    Attributes:
        hd_state: What this worker keeps of our requests.
    """

    hd_state: WorkerState

    # What each of the two answers -----------------------------------------------------------------
    @property
    def hd_requests(self) -> Mapping[str, KnownRequest]:
        """Rows this worker knows, running or preempted."""
        raise NotImplementedError

    def hd_history(self, row: ScheduledRow) -> Tensor | None:
        """int64 [stop]: a row's prompt and what it has written; None where that is not here yet."""
        raise NotImplementedError

    def hd_encode(self, vllm_id: str, picture: int) -> None:
        """Encode one picture of a row now."""
        raise NotImplementedError

    @property
    def hd_tower_graphs(self) -> tuple[Any, str]:
        """Owner and name of the vision tower's captured graphs."""
        raise NotImplementedError

    def _hd_places(self, step: Any) -> Iterable[RowPlace]:
        """All rows of a step."""
        raise NotImplementedError

    # What both have in common ---------------------------------------------------------------------
    def hd_set_up(self) -> None:
        """After loading, before the first forward."""
        _refuse(self.vllm_config)
        self.hd_state = WorkerState()
        self._hd_checked, self._hd_decode = Checked(), hooks.decoder(self)
        self._hd_branched = hooks.brancher(self)
        self._hd_forget_step()
        hooks.install(self)

    def _hd_forget_step(self) -> None:
        self._hd_scheduled: Iterable[str] = ()  # vLLM requests of the step; none in a dummy run
        self._hd_step: Any = None  # what the runner has of the step; None in a dummy run
        self._hd_step_batch: StepBatch | None = None
        self._hd_forward: WorkerForward | None = None

    def _hd_begin(self, scheduler_output: Any) -> None:
        self._hd_forget_step()
        self._hd_scheduled = scheduler_output.num_scheduled_tokens

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Our view of what was scheduled is made once vLLM's batch stands."""
        self._hd_begin(scheduler_output)
        token = hooks.current_runner.set(self)
        try:
            output = super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            hooks.current_runner.reset(token)
        forward = self.hd_forward()  # asked for even if no hook did, which is then noticed
        if forward is not None:
            forward.finish()
        return output

    def hd_step_batch(self) -> StepBatch | None:
        """Our rows of the current step; None in a dummy run."""
        if self._hd_step is None:
            return None
        if self._hd_step_batch is None:
            self._hd_step_batch = StepBatch.of(self.hd_state, self._hd_places(self._hd_step))
        return self._hd_step_batch

    def hd_forward(self) -> WorkerForward | None:
        """What acts inside the current forward; None where nothing of ours runs."""
        if self._hd_forward is None:
            batch = self.hd_step_batch()
            if batch is None or not batch.groups:
                return None
            lasting = (self.hd_state, self._hd_checked, self._hd_decode, self._hd_branched)
            self._hd_forward = WorkerForward(batch, *lasting)
        return self._hd_forward

    def hd_left_out(self) -> graphs.Modes:
        """CUDA graphs that would leave out what acts in the current step."""
        out = graphs.NONE
        for vllm_id in self._hd_scheduled:
            request = self.hd_requests.get(vllm_id)  # dummy runs have requests nobody knows
            params = request and request.sampling_params
            metadata = self.hd_state.metadata(vllm_id, params) if request else None
            if metadata is not None and metadata.group not in self.hd_state.ended:
                plan = self.hd_state.plan(metadata.plan)
                out |= graphs.left_out(plan, bool(metadata.capture))
        return out

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The end of a step."""
        try:
            return super().sample_tokens(grammar_output)
        finally:
            self._hd_forget_step()

    def hd_capture_towers(self, scheduled: Mapping[str, list[int]]) -> None:
        """Passes that read the vision tower run it once more, picture by picture.

        vLLM encodes the pictures of several requests as one batch and does not say whose attention
        is where in it.
        """
        for vllm_id, pictures in scheduled.items():
            request = self.hd_requests[vllm_id]
            metadata = self.hd_state.metadata(vllm_id, request.sampling_params)
            capture = (metadata.capture if metadata is not None else None) or {}
            if metadata is None or not (capture.get("vision") or capture.get("tower")):
                continue
            captured = self.hd_state.captured.setdefault(metadata.group, Captured())
            for i in pictures:
                item = request.mm_features[i].data
                try:
                    if capture["vision"]:
                        sizes = capture["sizes"][i]
                        captured.vision[i] = capture_tower(self, item, capture, sizes)
                    if capture["tower"]:
                        captured.tower[i] = capture_states(self, item, capture["tower"])
                except Exception as error:
                    record = self.hd_state.record(metadata.group)
                    record.fail(error, "reading the vision tower")


def _refuse(config: Any) -> None:
    """Refuse what would leave a worker with a part of a row.

    Raises:
        HalluDecodeError: The sentence names the option.
    """
    ranks = config.parallel_config
    parted = {
        "prefill_context_parallel_size": ranks.prefill_context_parallel_size > 1,
        "decode_context_parallel_size": ranks.decode_context_parallel_size > 1,
        "enable_dbo": ranks.use_ubatching,
        "enable_batch_sharded_sampling": ranks.enable_batch_sharded_sampling,
        "kv_sharing_fast_prefill": config.cache_config.kv_sharing_fast_prefill,  # in some layers
    }
    for option, is_on in parted.items():
        if is_on:
            raise HalluDecodeError(
                f"{option}= gives a worker a part of a row or of a batch, and halludecode needs "
                "them whole; start without it."
            )
