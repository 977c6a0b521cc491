"""A stand-in for Triton's CPU back end, so that vLLM's model runner V2 runs without a GPU.

Python imports this module at its start where PYTHONPATH names its folder (`make test-v2`), in every
process that vLLM starts, too. vLLM's CPU build takes Triton only where it has a back end "cpu",
which no published Triton has; Triton's own interpreter (TRITON_INTERPRET=1) then runs the kernels.
Two of them it cannot run: for that of top-k and top-p vLLM's own implementation in torch stands in,
for that of grammars (structured outputs) XGrammar's.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any


def _with_cpu(backends: ModuleType) -> None:
    driver = SimpleNamespace(is_active=lambda: True)
    backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def _with_torch(ops: ModuleType) -> None:
    def apply_top_k_top_p(logits: Any, k: Any, p: Any, **_: Any) -> Any:
        if k is None and p is None:
            return logits
        return ops.apply_top_k_top_p_pytorch(logits, k, p, allow_cpu_sync=True)

    ops.apply_top_k_top_p = apply_top_k_top_p


class _Grammar:
    """Called as the kernel is: forbids tokens of requests with a grammar."""

    def __getitem__(self, grid: Any) -> Any:
        return self._run

    def _run(
        self, logits: Any, _: Any, places: Any, starts: Any, bits: Any, *__: Any, **named: int
    ) -> None:
        from xgrammar import apply_token_bitmask_inplace

        requests = places // named["MASK_STRIDE"]
        at = starts[requests] + places % named["MASK_STRIDE"]
        active = at < starts[requests + 1]
        allowed = logits[at[active]]
        apply_token_bitmask_inplace(allowed, bits[active])
        logits[at[active]] = allowed


def _with_xgrammar(outputs: ModuleType) -> None:
    outputs._apply_grammar_bitmask_kernel = _Grammar()


CHANGES = {
    "vllm.v1.worker.gpu.structured_outputs": _with_xgrammar,
    "triton.backends": _with_cpu,
    "vllm.v1.sample.ops.topk_topp_sampler": _with_torch,
}


class Finder(importlib.abc.MetaPathFinder):
    """Changes these modules once they are loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        change = CHANGES.pop(fullname, None)  # popped: the search below asks this finder, too
        spec = importlib.util.find_spec(fullname) if change else None
        if spec is None or spec.loader is None or change is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("TRITON_INTERPRET") == "1":
    sys.meta_path.insert(0, Finder())
