"""In a worker: vLLM's own worker and model runner with our rows in them.

vLLM is given the name of `CPUWorker` or `GPUWorker` as ``worker_cls`` and finds it in each process
that computes. Both are made when they are asked for, so that importing this module loads neither's
libraries.
"""

from __future__ import annotations

import importlib
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.core.registry import STRATEGIES
from halludecode.engines.vllm.compat import checkpoints, startup_errors
from halludecode.engines.vllm.protocol import GroupReport, pack, unpack
from halludecode.engines.vllm.worker import graphs
from halludecode.engines.vllm.worker.captured import activations_of
from halludecode.engines.vllm.worker.state import WorkerState

BASES = {
    "CPUWorker": "vllm.v1.worker.cpu_worker",
    "GPUWorker": "vllm.v1.worker.gpu_worker",
}
STOCK = {"CPUWorker": "CPUWorker", "GPUWorker": "Worker"}


class WorkerMixin:
    """What our worker adds to vLLM's: it changes the runner, and answers the front end.

    The front end calls the ``hd_`` methods by the names in `protocol`.
    """

    def load_model(self, **kwargs: Any) -> None:
        """Load as vLLM does, then put our runner and sampler in place."""
        startup_errors.listen()  # not earlier: vLLM's processes first set their logging up
        checkpoints.accept_new_names(self.vllm_config.model_config)
        graphs.salt(self.vllm_config)
        super().load_model(**kwargs)
        # Whichever of its two runners vLLM chose; importing the other would load its kernels.
        v2 = self.vllm_config.use_v2_model_runner
        ours = importlib.import_module(f"{__package__}.runner_v{2 if v2 else 1}")
        ours.install(self.model_runner)

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
        return pack(vars(activations_of(self.model_runner.hd_state.captured_by(name), about)))

    def hd_drop_activations(self, names: list[str], stay: list[str]) -> None:
        """See `WorkerState.drop_activations`."""
        self.model_runner.hd_state.drop_activations(names, stay)

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
