"""On a CPU: vLLM in the process that loads it, where one worker is enough.

Left to itself vLLM starts an engine and a worker beside that process there, to bind the worker's
threads to cores, and each of the three imports all there is. In one a start takes a third of the
time and of the memory. ``VLLM_ENABLE_V1_MULTIPROCESSING=1`` in the environment asks for the three.

Engines of one process share vLLM's distributed state there. An engine that ends takes it along, and
the others fail at their next step; here only the last one does.
"""

from __future__ import annotations

import gc
import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, finalize, ref

import numpy as np
import torch

SWITCH = "VLLM_ENABLE_V1_MULTIPROCESSING"
SEVERAL = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    "prefill_context_parallel_size",
)

_HERE: WeakSet[Any] = WeakSet()  # cores of this process that have not ended


def is_enough(options: Mapping[str, Any]) -> bool:
    """Whether options ask for one worker on a CPU, and nobody has said where it shall live."""
    from vllm.platforms import current_platform

    said = SWITCH in os.environ or options.get("distributed_executor_backend") is not None
    return current_platform.is_cpu() and not said and all(options.get(n, 1) == 1 for n in SEVERAL)


@contextmanager
def one_process(options: Mapping[str, Any]) -> Iterator[None]:
    """Start vLLM in this process, if that `is_enough`, and leave the process as it was.

    A worker seeds every generator of random numbers and replaces `torch.set_num_threads` by a
    function that only warns; both are put back, so that what else runs here stays its user's.

    Args:
        options: What vLLM's `EngineArgs` take.
    """
    if not is_enough(options):
        yield
        return
    logger = logging.getLogger("vllm.engine.arg_utils")
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.set_num_threads
    os.environ[SWITCH] = "0"
    logger.addFilter(_untrue)
    try:
        yield
    finally:
        logger.removeFilter(_untrue)
        del os.environ[SWITCH]
        torch.set_num_threads = threads
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])


def end_alone(engine: Any) -> None:
    """Let an engine of this process end, when closed or dropped, without ending the others.

    Args:
        engine: vLLM's `LLMEngine`; one whose core is in a process of its own stays as it is.
    """
    client = engine.engine_core
    core = getattr(client, "engine_core", None)
    if core is None:
        return
    _HERE.add(core)
    mine = ref(core)  # a core that held itself would be freed by the garbage collector alone
    core.shutdown = lambda: _end(mine())
    client._finalizer.detach()
    client._finalizer = finalize(client, _end, core)


def _end(core: Any) -> None:
    """Ends a core, and what all of this process share with the last."""
    _HERE.discard(core)
    if not _HERE:
        type(core).shutdown(core)
        return
    core.scheduler.shutdown()
    core.structured_output_manager.clear_backend()
    vars(core).clear()
    gc.unfreeze()  # a starting core hides all there is from the garbage collector
    gc.collect()


def _untrue(record: logging.LogRecord) -> bool:
    """Without the warning that the random state of this process may have changed."""
    return "may affect the random state" not in str(record.msg)
