"""What is left in a server that should be idle: in its front end, scheduler, worker and cache."""

from __future__ import annotations

import gc
from collections.abc import Sized
from typing import Any

SWEPT = 64 + 1  # names of ended requests are swept away once there are more
# Bounded, and meant to stay.
CACHES = ("_plans", "_artifacts", "failed_pictures", "model_info", "staying")


def _scheduler() -> Any:
    """The scheduler of this process; vLLM has hidden what it made at first from the collector."""
    from halludecode.engines.vllm.scheduler.scheduler import GroupMixin

    gc.unfreeze()
    (found,) = (one for one in gc.get_objects() if GroupMixin in type(one).__mro__)
    return found


def of_worker(worker: Any) -> dict[str, int]:
    """Runs in the process of vLLM's scheduler and worker; everything should be zero."""
    scheduler, runner = _scheduler(), worker.model_runner
    cache = scheduler.kv_cache_manager.block_pool
    left = {
        "KV blocks": scheduler.kv_cache_config.num_blocks - 1 - cache.get_num_free_blocks(),
        "requests of the scheduler": len(scheduler.requests),
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "requests of the runner": len(runner.hd_requests),
    }
    for name in ("groups", "_group_of", "_failed", "_ready", "_broken", "_hidden"):
        left[f"scheduler.{name}"] = len(getattr(scheduler, name))
    left["scheduler._admitted"] = max(0, len(scheduler._admitted) - SWEPT)
    for name, value in vars(runner.hd_state).items():
        if name not in CACHES and isinstance(value, Sized):
            left[f"worker state.{name}"] = len(value)
    return left


def counts_of_worker(worker: Any) -> dict[str, int]:
    """What the scheduler counted: preempted groups, held rows and so on."""
    return dict(_scheduler().counts)


def of_front_end(handler: Any, chat: Any) -> dict[str, int]:
    """The same for the process that speaks HTTP."""
    engine, outputs = handler._engine, handler.llm.output_processor
    return {
        "answers under strategies": chat._running,
        "tasks of the handler": len(handler._tasks),
        "bridge pumps": len(handler.bridge._pumps),
        "answers that may ask for rows": len(handler.bridge.asked),
        "rows being made": len(handler._late._tasks),
        "requests of the output processor": outputs.get_num_unfinished_requests(),
        "waiting outputs": len(engine.loaded.router._waiting),
    }
