"""What of vLLM this engine builds on beyond its public options, checked before it starts."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halludecode.engines.vllm.compat.sources import Sources

# Packages of this project that import vLLM; a server needs both, an engine only the first.
ENGINE, SERVER = "halludecode.engines.vllm", "halludecode.serve"

# Module -> class -> methods that are called, wrapped or overridden, and attributes that are read.
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
    "vllm.v1.core.sched.output": {
        "NewRequestData": (
            *("req_id", "prompt_len", "prefill_token_ids", "mm_features", "sampling_params"),
        )
    },
    "vllm.config": {
        "VllmConfig": ("use_v2_model_runner", "additional_config", "compute_hash"),
        "CacheConfig": ("kv_sharing_fast_prefill",),
        "CompilationConfig": ("cache_dir", "cudagraph_mode", "pass_config"),
        "ParallelConfig": (
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
            "use_ubatching",
            "enable_batch_sharded_sampling",
        ),
    },
    "vllm.v1.sample.sampler": {"Sampler": ("forward", "sample", "apply_temperature")},
    "vllm.v1.worker.gpu_model_runner": {
        "GPUModelRunner": (
            *("requests", "input_batch", "discard_request_mask", "use_async_scheduling"),
            "cudagraph_dispatcher",
            "execute_model",
            "sample_tokens",
            "_execute_mm_encoder",
            "_cache_encoder_output",
            "_get_encoder_output_from_cache",
            "_init_mrope_positions",
            "_on_request_state_removed",
        )
    },
    "vllm.v1.cudagraph_dispatcher": {"CudagraphDispatcher": ("dispatch", "cudagraph_mode")},
    "vllm.v1.worker.gpu.model_runner": {
        "GPUModelRunner": (
            *("sampler", "encoder_cache", "req_states", "get_model", "cudagraph_manager"),
            "dp_size",
            "execute_model",
            "sample_tokens",
            "add_requests",
            "finish_requests",
            "prepare_inputs",
        )
    },
    "vllm.v1.worker.gpu.cudagraph_utils": {
        "CudaGraphManager": ("dispatch", "cudagraph_mode"),
        "BatchExecutionDescriptor": (
            *("cg_mode", "num_tokens", "num_reqs", "uniform_token_count", "max_query_len"),
        ),
    },
    "vllm.v1.worker.gpu.input_batch": {
        "InputBatch": (
            "req_ids",
            "query_start_loc_np",
            "num_computed_tokens_np",
            "num_scheduled_tokens",
            "prefill_len_np",
        )
    },
    "vllm.v1.worker.gpu.states": {"RequestState": ("req_id_to_index", "all_token_ids")},
    "vllm.v1.worker.gpu.sample.sampler": {
        "Sampler": ("__call__", "sample", "_sample_random", "sampling_states")
    },
    "vllm.v1.worker.gpu.sample.states": {"SamplingStates": ("apply_temperature",)},
    "vllm.v1.worker.gpu.model_states.interface": {
        "ModelState": ("execute_mm_encoder", "add_request", "encoder_cache")
    },
    "vllm.v1.worker.gpu.mm.encoder_runner": {"EncoderRunner": ("cudagraph_manager",)},
    "vllm.v1.worker.gpu.mm.encoder_cache": {"EncoderCache": ("mm_features", "encoder_outputs")},
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
        "InprocClient": ("engine_core", "_finalizer"),
    },
    "vllm.v1.engine.core": {
        "EngineCore": ("shutdown", "scheduler", "structured_output_manager"),
    },
    "vllm.v1.engine.parallel_sampling": {"ParentRequest": ("get_outputs",)},
    "vllm.multimodal.media": {"MediaConnector": ("load_from_url_async",)},
    "vllm.multimodal.processing.processor": {
        "BaseMultiModalProcessor": ("apply", "_get_prompt_updates")
    },
    "vllm.model_executor.layers.attention": {"Attention": (), "MMEncoderAttention": ("forward",)},
    "vllm.v1.attention.backend": {"AttentionType": ("DECODER",)},
    "vllm.model_executor.models.utils": {"WeightsMapper": ("__or__",)},
}
# Parameters that are passed by name, or all that come first.
TAKES = {
    ("vllm.v1.worker.gpu.sample.sampler", "Sampler", "_sample_random"): (
        *("processed_logits", "expanded_idx_mapping", "idx_mapping_np", "pos", "top_k", "top_p"),
    ),
    ("vllm.v1.cudagraph_dispatcher", "CudagraphDispatcher", "dispatch"): ("valid_modes",),
    ("vllm.v1.worker.gpu.cudagraph_utils", "CudaGraphManager", "dispatch"): (
        *("num_reqs", "num_tokens", "uniform_token_count", "max_query_len"),
    ),
    ("vllm.multimodal.processing.processor", "BaseMultiModalProcessor", "_get_prompt_updates"): (
        *("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    ),
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

# What has moved between the releases we run on: name -> modules that have had it, newest first.
MOVED = {
    "make_arg_parser": ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args"),
    "validate_parsed_serve_args": (
        "vllm.entrypoints.common.cli_args",
        "vllm.entrypoints.launchers.cli_args",
    ),
    "cli_env_setup": (
        "vllm.entrypoints.common.startup",
        "vllm.entrypoints.serve.utils.api_utils",
    ),
}
# Our subclasses of vLLM's classes: a method that becomes abstract there is missing here.
SUBCLASSES = {
    ENGINE: (("halludecode.engines.vllm.scheduler.scheduler", "AsyncGroupScheduler"),),
    SERVER: (
        ("halludecode.serve.images", "PictureIO"),
        ("halludecode.serve.images", "Pictures"),
    ),
}


def moved(name: str) -> Any:
    """A function of `MOVED`, from where this vLLM keeps it.

    Raises:
        ImportError: It is in none of these places.
    """
    for module in MOVED[name]:
        found = _get(module, name)
        if found is not None:
            return found
    raise ImportError(f"vLLM has {name} in none of {', '.join(MOVED[name])}")


def imported(packages: Iterable[str] = (ENGINE, SERVER)) -> set[tuple[str, str]]:
    """What these packages' sources import from vLLM: (module, name)."""
    found = set[tuple[str, str]]()
    for package in packages:
        for source in files(package).glob("**/*.py"):  # type: ignore[attr-defined]
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                    found |= {(str(node.module), alias.name) for alias in node.names}
    return found


class Imported:
    """What can be asked of this vLLM by importing it; see `sources.Sources` for the other way."""

    def has(self, module: str, name: str) -> bool:
        """Whether a module has a name, or is a package with a module of that name."""
        return _get(module, name) is not None or _get(f"{module}.{name}", "__name__") is not None

    def has_member(self, module: str, name: str, member: str) -> bool:
        """Whether a class has a method or field, or its instances an attribute from the start."""
        cls: Any = _get(module, name)
        if hasattr(cls, member) or member in getattr(cls, "__dataclass_fields__", ()):
            return True
        starts = [inspect.unwrap(base.__init__) for base in getattr(cls, "__mro__", ())]
        return any(member in f.__code__.co_names for f in starts if inspect.isfunction(f))

    def parameters(self, module: str, name: str, method: str) -> list[str] | None:
        """Names of a method's parameters; None where there is no such method."""
        function = getattr(_get(module, name), method, None)
        return None if function is None else list(inspect.signature(function).parameters)

    def abstract(self, module: str, name: str) -> list[str]:
        """Methods of a class, inherited ones too, that nothing implements."""
        return sorted(getattr(_get(module, name), "__abstractmethods__", ()))


def missing(
    packages: Sequence[str] = (ENGINE, SERVER), asked: Imported | Sources | None = None
) -> list[str]:
    """Dotted names that vLLM lacks, in words; empty where all are there.

    Args:
        packages: Whose needs; those of the engine alone cost no import of a server's modules.
        asked: This vLLM where it is imported anyway, or the files of any.
    """
    asked = asked or Imported()
    lacking = [f"{m}.{name}" for m, name in sorted(imported(packages)) if not asked.has(m, name)]
    for package in packages:
        for module, name in SUBCLASSES[package]:
            abstract = asked.abstract(module, name)
            lacking += [f"a base of {name} without abstract method {m}" for m in abstract]
    if SERVER in packages:
        for name, places in MOVED.items():
            if not any(asked.has(module, name) for module in places):
                lacking.append(f"{' or '.join(places)}.{name}")
    for module, classes in USED.items():
        for name, members in classes.items():
            if not asked.has(module, name):
                lacking.append(f"{module}.{name}")
                continue
            absent = [m for m in members if not asked.has_member(module, name, m)]
            lacking += [f"{module}.{name}.{member}" for member in absent]
    for (module, name, method), parameters in TAKES.items():
        taken = asked.parameters(module, name, method)
        absent = [p for p in parameters if taken is not None and p not in taken]
        lacking += [f"{module}.{name}.{method}({parameter}=)" for parameter in absent]
    return lacking


def installed() -> Sources:
    """The files of the vLLM that is installed, and ours."""
    specs = [find_spec(name) for name in ("vllm", "halludecode")]  # imports neither
    return Sources(*(Path(str(spec.origin)).parents[1] for spec in specs if spec))


def about() -> dict[str, Any]:
    """Version, kind of device, whether it has Triton, and what is missing; starts nothing."""
    import vllm
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    counted = len(imported()) + len(MOVED) + sum(len(classes) for classes in USED.values())
    return {
        "version": vllm.__version__,
        "device": current_platform.device_type,
        "triton": HAS_TRITON,
        "missing": missing(asked=installed()),
        "counted": counted,
    }


def _get(module: str, name: str) -> object | None:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
