"""Models in which only some decoder layers have attention: where strategies attend there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.model_info import ModelInfo

if TYPE_CHECKING:
    from halludecode.core.activations import ActivationRequest
    from halludecode.core.strategy import Strategy


def attended(strategy: Strategy, layers: list[int], m: ModelInfo) -> list[int]:
    """Those of a strategy's layers where it can attend.

    Raises:
        UnsupportedStrategy: A layer it cannot do without is recurrent.
    """
    has = [layer for layer in layers if layer not in m.recurrent]
    needed = {"one": [] if has else layers, "first": layers[:1], "all": layers}
    lacking = [layer for layer in needed[strategy.must_attend] if layer not in has]
    if lacking:
        raise UnsupportedStrategy(_recurrent(strategy, lacking, m))
    return has


def check_reads(
    strategy: Strategy, requests: Mapping[str, ActivationRequest], m: ModelInfo
) -> None:
    """Raise UnsupportedStrategy if a pass is to keep attention where there is none."""
    read = {layer for request in requests.values() for layer in (*request.image, *request.heads)}
    lacking = sorted(read & {*m.recurrent})
    if lacking:
        raise UnsupportedStrategy(_recurrent(strategy, lacking, m))


def _recurrent(strategy: Strategy, layers: list[int], m: ModelInfo) -> str:
    has = [layer for layer in range(m.num_layers) if layer not in m.recurrent]
    return (
        f"{strategy.name} needs attention where this model has none, in layer(s) {layers}: they "
        f"are recurrent, and only {has} attend. Give it other layers if it takes them, or use "
        "another model or strategy."
    )
