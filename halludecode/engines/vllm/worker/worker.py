"""vLLM's worker with our rows in it: named as ``worker_cls``, found in every process.

`CPUWorker` and `GPUWorker` are made when vLLM asks for them, so that importing this module loads
neither's libraries.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from halludecode.core.errors import HalluDecodeError
from halludecode.engines.vllm.compat import checkpoints as weights
from halludecode.engines.vllm.compat import startup_errors as reasons
from halludecode.engines.vllm.row_metadata import pack, unpack
from halludecode.engines.vllm.worker import hooks
from halludecode.engines.vllm.worker import image_features as features
from halludecode.engines.vllm.worker import sampler as hd_sampler
from halludecode.engines.vllm.worker.attention import Checked
from halludecode.engines.vllm.worker.capture import Captured, activations_of, capture_tower
from halludecode.engines.vllm.worker.forward_context import ForwardContext
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch

BASES = {
    "CPUWorker": "vllm.v1.worker.cpu_worker",
    "GPUWorker": "vllm.v1.worker.gpu_worker",
}
STOCK = {"CPUWorker": "CPUWorker", "GPUWorker": "Worker"}


class RunnerMixin:
    """What our model runner adds to vLLM's V1 runner; its class is changed after loading."""

    hd_desk: WorkerState

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Remember what was scheduled; the view is made once vLLM's batch stands."""
        self._hd_scheduled = scheduler_output.num_scheduled_tokens
        self._hd_view: StepBatch | None = None
        self._hd_inside: ForwardContext | None = None
        before = hooks.running.set(self)
        try:
            made = super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            hooks.running.reset(before)
        # Asked for even if no hook did, which is then noticed.
        acted = self.hd_inside() if scheduler_output.total_num_scheduled_tokens else None
        if acted is not None:
            acted.finish()
        return made

    def hd_view(self) -> StepBatch | None:
        """Our rows of the current step; None in a dummy run."""
        if self._hd_scheduled is None:
            return None
        if self._hd_view is None:
            self._hd_view = StepBatch.of(self, self.hd_desk, self._hd_scheduled)
        return self._hd_view

    def hd_inside(self) -> ForwardContext | None:
        """What acts inside the current forward; None where nothing of ours runs."""
        if self._hd_inside is None:
            view = self.hd_view()
            if view is None or not view.groups:
                return None
            self._hd_inside = ForwardContext(view, self.hd_desk, self._hd_checked, self._hd_decode)
        return self._hd_inside

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Rows still in prefill must not draw: their generators could not be put back on a CPU."""
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
            self._hd_scheduled = self._hd_view = self._hd_inside = None

    def _execute_mm_encoder(self, scheduler_output: Any) -> Any:
        """Encode pictures; edits of their features apply before they are kept."""
        scheduled = scheduler_output.scheduled_encoder_inputs
        self._hd_edits = features.pending(self, scheduled)
        self._capture_towers(scheduled)
        return super()._execute_mm_encoder(scheduler_output)

    def _capture_towers(self, scheduled: dict[str, list[int]]) -> None:
        """Passes that read the vision tower run it once more, picture by picture."""
        for name, pictures in scheduled.items():
            request = self.requests[name]
            tag = self.hd_desk.tag(name, request.sampling_params)
            if tag is not None and tag.capture and tag.capture["vision"]:
                kept = self.hd_desk.captured.setdefault(tag.group, Captured())
                for i in pictures:
                    item, sizes = request.mm_features[i].data, tag.capture["sizes"][i]
                    try:
                        kept.vision[i] = capture_tower(self, item, tag.capture, sizes)
                    except Exception as error:
                        self.hd_desk.note(tag.group).fail(
                            error, "reading the vision tower's attention"
                        )

    def _cache_encoder_output(self, mm_hash: str, output: Tensor, *args: Any) -> None:
        edit = self._hd_edits.get(mm_hash)
        made = output if edit is None else features.apply(self, mm_hash, edit, output)
        super()._cache_encoder_output(mm_hash, made, *args)

    def _get_encoder_output_from_cache(self, mm_hash: str) -> Tensor | None:
        """Features a row is about to read; a miss would end the engine, so they are made again."""
        found = super()._get_encoder_output_from_cache(mm_hash)
        if found is None and features.encode_again(self, mm_hash):
            found = super()._get_encoder_output_from_cache(mm_hash)
        return found

    def _init_mrope_positions(self, req_state: Any) -> None:
        """Chosen image tokens form no raster: their positions stand in line, like words."""
        tag = self.hd_desk.tag(req_state.req_id, req_state.sampling_params)
        if tag is not None and tag.line:
            req_state.mrope_positions, req_state.mrope_position_delta = features.in_line(req_state)
        else:
            super()._init_mrope_positions(req_state)

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        self.hd_desk.drop_tag(req_id)
        super()._on_request_state_removed(req_id, req_state)


class WorkerMixin:
    """What our worker adds to vLLM's: it changes the runner, and answers the front end."""

    def load_model(self, **kwargs: Any) -> None:
        """Load as vLLM does, then put our runner and sampler in place."""
        reasons.listen()  # not earlier: vLLM's processes first set their logging up
        weights.accept_new_names(self.vllm_config.model_config)
        super().load_model(**kwargs)
        runner = self.model_runner
        runner.__class__ = type("Hallu" + type(runner).__name__, (RunnerMixin, type(runner)), {})
        runner.hd_desk = WorkerState()
        runner._hd_scheduled = runner._hd_view = runner._hd_inside = None
        runner._hd_edits = {}
        runner._hd_checked, runner._hd_decode = Checked(), hooks.decoder(runner)
        hd_sampler.install(runner)
        hooks.install(runner)

    def hd_set_up(self, model_info: dict[str, Any]) -> None:
        """See `WorkerState.set_up`."""
        self.model_runner.hd_desk.set_up(model_info)

    def hd_report(self, groups: list[str]) -> list[dict[str, Any]]:
        """See `WorkerState.report`."""
        return self.model_runner.hd_desk.report(groups)

    def hd_artifact(self, part: str, tensors: Any) -> None:
        """See `WorkerState.add_artifact`."""
        self.model_runner.hd_desk.add_artifact(part, unpack(tensors))

    def hd_prepare(self, job: str, text: str, wanted: Any, fetch: Any) -> Any:
        """See `WorkerState.prepare`; what fails is told in words."""
        try:
            return pack(self.model_runner.hd_desk.prepare(job, text, wanted, fetch))
        except HalluDecodeError as error:
            return {"error": str(error), "kind": type(error).__name__}

    def hd_activations(self, name: str, told: Any) -> Any:
        """What one pass kept, whole."""
        kept = self.model_runner.hd_desk.captured.get(name, Captured())
        return pack(vars(activations_of(kept, told["capture"], told)))

    def hd_drop_activations(self, names: list[str]) -> None:
        """Drop what passes kept."""
        for name in names:
            self.model_runner.hd_desk.captured.pop(name, None)

    def hd_forget(self, jobs: list[str]) -> None:
        """See `WorkerState.forget`."""
        self.model_runner.hd_desk.forget(jobs)


def __getattr__(name: str) -> Any:
    if name not in BASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = getattr(importlib.import_module(BASES[name]), STOCK[name])
    made = type(name, (WorkerMixin, base), {"__module__": __name__})
    globals()[name] = made
    return made
