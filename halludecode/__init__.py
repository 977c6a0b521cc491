"""Training-free decoding strategies against hallucination in vision-language models.

    import halludecode as hd
    hd.generate("testbed", "Describe the image.", ["testbed:3"], strategy="vcd").text

Importing this package loads neither torch nor transformers nor vllm; names load what they need on
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import (
    HalluDecodeError,
    HookNeverFired,
    IncompatibleStrategies,
    InvalidData,
    InvalidModel,
    InvalidParameter,
    InvalidRequest,
    InvalidScores,
    MissingExtra,
    OutOfMemory,
    UnknownStrategy,
    UnsupportedStrategy,
)
from halludecode.core.paper import Paper
from halludecode.core.params import param
from halludecode.core.strategy import Strategy, strategy
from halludecode.engines.api import Chunk, Explanation, Output, Request, Sampling
from halludecode.models import import_repair as _repair

if TYPE_CHECKING:
    from halludecode.analysis.head_map import HeadMap
    from halludecode.analysis.head_sensitivity import head_sensitivity
    from halludecode.analysis.sinks import SinkReport, sinks
    from halludecode.api import generate, get, load
    from halludecode.catalog import BenchmarkInfo, Info, benchmarks, strategies
    from halludecode.engines.hf.apply import applied
    from halludecode.evals.benchmarks.base import Benchmark
    from halludecode.evals.benchmarks.registry import benchmark
    from halludecode.evals.benchmarks.yes_no import YesNoBenchmark
    from halludecode.evals.results.compare import compare
    from halludecode.evals.runner.run import evaluate

_repair.install()

__version__ = "0.2.0"
_LAZY = {
    "HeadMap": "halludecode.analysis.head_map",
    "head_sensitivity": "halludecode.analysis.head_sensitivity",
    "SinkReport": "halludecode.analysis.sinks",
    "sinks": "halludecode.analysis.sinks",
    "applied": "halludecode.engines.hf.apply",
    "generate": "halludecode.api",
    "get": "halludecode.api",
    "load": "halludecode.api",
    "BenchmarkInfo": "halludecode.catalog",
    "Info": "halludecode.catalog",
    "benchmarks": "halludecode.catalog",
    "strategies": "halludecode.catalog",
    "Benchmark": "halludecode.evals.benchmarks.base",
    "YesNoBenchmark": "halludecode.evals.benchmarks.yes_no",
    "benchmark": "halludecode.evals.benchmarks.registry",
    "compare": "halludecode.evals.results.compare",
    "evaluate": "halludecode.evals.runner.run",
}
__all__ = [
    "Benchmark",
    "BenchmarkInfo",
    "Chunk",
    "Explanation",
    "HalluDecodeError",
    "HeadMap",
    "HookNeverFired",
    "IncompatibleStrategies",
    "Info",
    "InvalidData",
    "InvalidModel",
    "InvalidParameter",
    "InvalidRequest",
    "InvalidScores",
    "MissingExtra",
    "OutOfMemory",
    "Output",
    "Paper",
    "Request",
    "Sampling",
    "SinkReport",
    "Strategy",
    "UnknownStrategy",
    "UnsupportedStrategy",
    "YesNoBenchmark",
    "applied",
    "benchmark",
    "benchmarks",
    "compare",
    "evaluate",
    "generate",
    "get",
    "head_sensitivity",
    "load",
    "param",
    "sinks",
    "strategies",
    "strategy",
]


def __getattr__(name: str) -> Any:
    if name == "testbed":
        return importlib.import_module("halludecode.testbed")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'halludecode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
