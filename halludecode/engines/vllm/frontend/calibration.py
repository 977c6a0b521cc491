"""In the front end: the vLLM engine as `calibrate` sees an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from halludecode.calibration.calibrator import Calibrator
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.model_info import ModelInfo
from halludecode.core.plan import Plan
from halludecode.engines.api import Output, Request, Sampling
from halludecode.engines.vllm.frontend.loading import Loaded

if TYPE_CHECKING:
    from halludecode.engines.vllm.engine import VLLMEngine


class HostCalibrator(Calibrator):
    """Artifacts of a model in vLLM; what passes kept is brought over one by one."""

    def _collect(self, request: ActivationRequest) -> Activations:
        collector: Any = self.collector
        return collector.collect(request)


@dataclass(frozen=True)
class Host:
    """What making an artifact asks of an engine."""

    engine: VLLMEngine
    loaded: Loaded
    name: str = "vllm"

    @property
    def model(self) -> Loaded:
        """Whose turn it is is kept per loaded model."""
        return self.loaded

    @property
    def net(self) -> Any:
        """Numbers and layout."""
        model_info: ModelInfo = self.loaded.model_info
        return SimpleNamespace(model_info=lambda: model_info, layout=self.loaded.layout)

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        return self.loaded.digest

    @property
    def provides(self) -> frozenset[str]:
        """Needs that are served."""
        return self.engine.provides

    def _guard(self) -> AbstractContextManager[Any]:
        """VLLM keeps its own order and memory."""
        return nullcontext()

    def generate(
        self, requests: Sequence[Request], plan: Plan, sampling: Sampling, **more: Any
    ) -> list[Output]:
        """Answers under a plan that may hold an artifact on trial."""
        return self.engine.generate(requests, plan, sampling, **more)
