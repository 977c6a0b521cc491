"""What of vLLM this engine builds on beyond its public options, checked before it starts."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

# Module -> class -> methods that are called, wrapped or overridden.
USED: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm.v1.core.sched.scheduler": {
        "Scheduler": (
            "schedule",
            "update_from_output",
            "add_request",
            "finish_requests",
            "_preempt_request",
            "_update_after_schedule",
            "_inflight_prefill_reserved_blocks",
        )
    },
    "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": ("_update_after_schedule",)},
    "vllm.v1.core.kv_cache_coordinator": {"KVCacheCoordinator": ("get_num_blocks_to_allocate",)},
    "vllm.v1.sample.sampler": {"Sampler": ("forward", "sample")},
    "vllm.v1.worker.gpu_model_runner": {
        "GPUModelRunner": (
            "execute_model",
            "sample_tokens",
            "_execute_mm_encoder",
            "_cache_encoder_output",
            "_get_encoder_output_from_cache",
            "_init_mrope_positions",
            "_on_request_state_removed",
        )
    },
    "vllm.v1.engine.llm_engine": {
        "LLMEngine": ("from_engine_args", "step", "abort_request", "collective_rpc")
    },
    "vllm.v1.engine.input_processor": {"InputProcessor": ("process_inputs", "assign_request_id")},
    "vllm.v1.engine.output_processor": {"OutputProcessor": ("add_request",)},
    "vllm.v1.engine.async_llm": {
        "AsyncLLM": ("_run_output_handler", "abort", "check_admission", "collective_rpc")
    },
    "vllm.v1.engine.core_client": {
        "AsyncMPClient": ("add_request_async", "_call_utility_async"),
        "DPLBAsyncMPClient": ("get_core_engine_for_request",),
    },
    "vllm.v1.engine.parallel_sampling": {"ParentRequest": ("get_outputs",)},
    "vllm.multimodal.media": {"MediaConnector": ("load_from_url_async",)},
    "vllm.multimodal.processing.processor": {"BaseMultiModalProcessor": ("apply",)},
    "vllm.model_executor.layers.attention": {"Attention": (), "MMEncoderAttention": ("forward",)},
    "vllm.v1.attention.backend": {"AttentionType": ("DECODER",)},
    "vllm.model_executor.models.utils": {"WeightsMapper": ("__or__",)},
}
FUNCTIONS = {
    "vllm.v1.sample.ops.topk_topp_sampler": ("apply_top_k_top_p",),
    "vllm.distributed": (
        "get_tensor_model_parallel_world_size",
        "tensor_model_parallel_all_gather",
    ),
    "vllm.inputs.engine": ("mm_input", "tokens_input"),
    "vllm.model_executor.model_loader.utils": ("get_model_architecture",),
    "vllm.multimodal.utils": ("group_and_batch_mm_kwargs",),
}
# Parameters that are passed by name.
TAKES = {
    ("vllm.v1.sample.sampler", "Sampler", "forward"): ("logits", "sampling_metadata"),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator", "get_num_blocks_to_allocate"): (
        "request_id",
        "num_tokens",
        "new_computed_blocks",
        "num_encoder_tokens",
        "total_computed_tokens",
        "num_local_computed_tokens",
        "num_tokens_main_model",
        "prefill_end",
    ),
}


def missing() -> list[str]:
    """Dotted names that this vLLM lacks, in words; empty where all are there."""
    lacking: list[str] = []
    for module, classes in USED.items():
        for name, methods in classes.items():
            cls = _get(module, name)
            absent = [f".{m}" for m in methods if not hasattr(cls, m)] if cls else [""]
            lacking += [f"{module}.{name}{method}" for method in absent]
    for module, functions in FUNCTIONS.items():
        lacking += [f"{module}.{name}" for name in functions if _get(module, name) is None]
    for (module, name, method), parameters in TAKES.items():
        function = getattr(_get(module, name), method, None)
        accepted = inspect.signature(function).parameters if function else {}
        lacking += [
            f"{module}.{name}.{method}({parameter}=)"
            for parameter in parameters
            if function and parameter not in accepted
        ]
    return lacking


def about() -> dict[str, Any]:
    """Version, kind of device, and what is missing; imports vLLM, starts nothing."""
    import vllm
    from vllm.platforms import current_platform

    counted = sum(len(classes) for classes in (*USED.values(), *FUNCTIONS.values()))
    return {
        "version": vllm.__version__,
        "device": current_platform.device_type,
        "missing": missing(),
        "counted": counted,
    }


def _get(module: str, name: str) -> object | None:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
