"""In a worker: vLLM's own worker and model runner with our rows in them.

vLLM is given the name of `CPUWorker` or `GPUWorker` as ``worker_cls`` and finds it in each process
that computes. Both are made when they are asked for, so that importing this module loads neither's
libraries.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from halludecode.core.errors import HalluDecodeError
from halludecode.core.registry import STRATEGIES
from halludecode.engines.vllm.compat import checkpoints, startup_errors
from halludecode.engines.vllm.protocol import GroupReport, pack, unpack
from halludecode.engines.vllm.worker import hooks, image_features
from halludecode.engines.vllm.worker import sampler as group_sampler
from halludecode.engines.vllm.worker.attention import Checked
from halludecode.engines.vllm.worker.capture import capture_tower
from halludecode.engines.vllm.worker.captured import Captured, activations_of
from halludecode.engines.vllm.worker.forward_context import WorkerForward
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch

BASES = {
    "CPUWorker": "vllm.v1.worker.cpu_worker",
    "GPUWorker": "vllm.v1.worker.gpu_worker",
}
STOCK = {"CPUWorker": "CPUWorker", "GPUWorker": "Worker"}


class RunnerMixin:
    """What our model runner adds to vLLM's V1 runner; its class is changed after loading.

    Attributes:
        hd_state: What this worker keeps of our requests.
    """

    hd_state: WorkerState

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Remember what was scheduled; our view of it is made once vLLM's batch stands."""
        self._hd_scheduled = scheduler_output.num_scheduled_tokens
        self._hd_step_batch: StepBatch | None = None
        self._hd_forward: WorkerForward | None = None
        token = hooks.current_runner.set(self)
        try:
            output = super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            hooks.current_runner.reset(token)
        # Asked for even if no hook did, which is then noticed.
        forward = self.hd_forward() if scheduler_output.total_num_scheduled_tokens else None
        if forward is not None:
            forward.finish()
        return output

    def hd_step_batch(self) -> StepBatch | None:
        """Our rows of the current step; None in a dummy run."""
        if self._hd_scheduled is None:
            return None
        if self._hd_step_batch is None:
            self._hd_step_batch = StepBatch.of(self, self.hd_state, self._hd_scheduled)
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

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Rows still in prefill must not draw: their generators could not be put back on a CPU.

        vLLM draws for every row and discards what rows in prefill drew; it then winds the generator
        of a seeded request back, which those of a CPU cannot do and end the engine with. A row
        without a generator draws from the common one, so they are taken away until it has drawn.
        """
        generators, count = self.input_batch.generators, self.input_batch.num_reqs
        held = {
            i: generators.pop(i)
            for i in list(generators)
            if i < count and self.discard_request_mask.np[i]
        }
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(held)
            self._hd_scheduled = self._hd_step_batch = self._hd_forward = None

    def _execute_mm_encoder(self, scheduler_output: Any) -> Any:
        """Encode pictures; edits of their features apply before they are kept."""
        scheduled = scheduler_output.scheduled_encoder_inputs
        self._hd_edits = image_features.edits_of(self, scheduled)
        self._capture_towers(scheduled)
        return super()._execute_mm_encoder(scheduler_output)

    def _capture_towers(self, scheduled: dict[str, list[int]]) -> None:
        """Passes that read the vision tower run it once more, picture by picture.

        vLLM encodes the pictures of several requests as one batch and does not say whose attention
        is where in it.
        """
        for vllm_id, pictures in scheduled.items():
            request = self.requests[vllm_id]
            metadata = self.hd_state.metadata(vllm_id, request.sampling_params)
            if metadata is None or not metadata.capture or not metadata.capture["vision"]:
                continue
            captured = self.hd_state.captured.setdefault(metadata.group, Captured())
            for i in pictures:
                item, sizes = request.mm_features[i].data, metadata.capture["sizes"][i]
                try:
                    captured.vision[i] = capture_tower(self, item, metadata.capture, sizes)
                except Exception as error:
                    record = self.hd_state.record(metadata.group)
                    record.fail(error, "reading the vision tower's attention")

    def _cache_encoder_output(self, mm_hash: str, output: Tensor, *args: Any) -> None:
        edit = self._hd_edits.get(mm_hash)
        if edit is not None:
            output = image_features.apply(self, mm_hash, edit, output)
        super()._cache_encoder_output(mm_hash, output, *args)

    def _get_encoder_output_from_cache(self, mm_hash: str) -> Tensor | None:
        """Features a row is about to read; a miss would end the engine, so they are made again."""
        features = super()._get_encoder_output_from_cache(mm_hash)
        if features is None and image_features.encode_again(self, mm_hash):
            features = super()._get_encoder_output_from_cache(mm_hash)
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


class WorkerMixin:
    """What our worker adds to vLLM's: it changes the runner, and answers the front end.

    The front end calls the ``hd_`` methods by the names in `protocol`.
    """

    def load_model(self, **kwargs: Any) -> None:
        """Load as vLLM does, then put our runner and sampler in place."""
        startup_errors.listen()  # not earlier: vLLM's processes first set their logging up
        checkpoints.accept_new_names(self.vllm_config.model_config)
        super().load_model(**kwargs)
        runner = self.model_runner
        # vLLM names the runner's class in the code that makes it and has no option for another. An
        # instance may change its class where both have the same layout in memory, which a subclass
        # without slots has; it is done before the first forward, so none runs without our methods.
        runner.__class__ = type("Hallu" + type(runner).__name__, (RunnerMixin, type(runner)), {})
        runner.hd_state = WorkerState()
        runner._hd_scheduled = runner._hd_step_batch = runner._hd_forward = None
        runner._hd_edits = {}
        runner._hd_checked, runner._hd_decode = Checked(), hooks.decoder(runner)
        runner._hd_branched = hooks.brancher(runner)
        group_sampler.install(runner)
        hooks.install(runner)

    def hd_set_model_info(self, numbers: dict[str, Any]) -> None:
        """See `WorkerState.set_model_info`."""
        self.model_runner.hd_state.set_model_info(numbers)

    def hd_find_strategies(self, names: list[str]) -> list[str]:
        """Names of strategies that are not known in this process."""
        unknown: list[str] = []
        for name in names:
            try:
                STRATEGIES.get(name)
            except HalluDecodeError:
                unknown.append(name)
        return unknown

    def hd_set_artifact(self, text: str, tensors: Any) -> None:
        """See `WorkerState.set_artifact`."""
        self.model_runner.hd_state.set_artifact(text, unpack(tensors))

    def hd_prepare_state(self, request_name: str, text: str, passes: Any, fetch: Any) -> Any:
        """See `WorkerState.prepare_state`; what fails is told in words."""
        try:
            state: WorkerState = self.model_runner.hd_state
            return pack(state.prepare_state(request_name, text, passes, fetch))
        except HalluDecodeError as error:
            return {"error": str(error), "kind": type(error).__name__}

    def hd_read_activations(self, name: str, about: Any) -> Any:
        """What one pass kept, whole."""
        captured = self.model_runner.hd_state.captured.get(name, Captured())
        return pack(vars(activations_of(captured, about)))

    def hd_drop_activations(self, names: list[str]) -> None:
        """Drop what passes kept."""
        for name in names:
            self.model_runner.hd_state.captured.pop(name, None)

    def hd_report(self, groups: list[str]) -> list[GroupReport]:
        """See `WorkerState.report`."""
        return self.model_runner.hd_state.report(groups)

    def hd_drop_state(self, request_names: list[str]) -> None:
        """See `WorkerState.drop_state`."""
        self.model_runner.hd_state.drop_state(request_names)


def __getattr__(name: str) -> Any:
    if name not in BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = getattr(importlib.import_module(BASES[name]), STOCK[name])
    worker = type(name, (WorkerMixin, base), {"__module__": __name__})
    globals()[name] = worker
    return worker
