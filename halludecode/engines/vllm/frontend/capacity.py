"""In the front end: what this engine refuses before any token is produced, in one sentence each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidRequest, UnsupportedStrategy
from halludecode.core.needs import quoted
from halludecode.core.plan import Plan
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.protocol import FIND_STRATEGIES

if TYPE_CHECKING:
    from halludecode.engines.inputs.rows import Row

ATTENTION = frozenset(
    {
        "add_scores",
        "scale_scores",
        "mask",
        "scale_weights",
        "average_values",
        "scale_heads",
        "mass",
        "scores",
        "weights",
        "head_outputs",
        "token_mask",
        "at_first_token",
        "keys_at_first_token",
        "tally",
        "received",
        "paid",
        "confidence",
        "branch_off",
    }
)
TOWER = frozenset({"vision", "tower", "tower states"})


def check_known(plan: Plan, call_workers: Callable[..., list[Any]]) -> None:
    """Refuse a strategy that vLLM's processes would not find, and end over.

    Raises:
        UnsupportedStrategy: The sentence says where to define it.
    """
    strategies = [part.strategy for part in plan.parts]
    names = [s.name for s in strategies if not type(s).__module__.startswith("halludecode.")]
    found = call_workers(FIND_STRATEGIES, names) if names else []
    unknown = next((each for each in found if each), None)
    if unknown:
        raise UnsupportedStrategy(
            f"Strategy {unknown[0]!r} is not known in vLLM's processes, which import the script "
            "anew: define it at the top level of the script or of a module that it imports, not "
            "in a function or a notebook, or use engine='hf'."
        )


def check_plan(plan: Plan, config: Any) -> None:
    """Refuse what this vLLM, as it was started, cannot serve.

    Raises:
        UnsupportedStrategy: The sentence names the need and what to change.
    """
    compiled = config.compilation_config
    if plan.needs & ATTENTION and compiled.pass_config.fuse_attn_quant:
        why = "fuse_attn_quant rounds before they can be edited; start without it"
        _refuse(plan, ATTENTION, why)
    if plan.needs & TOWER and compiled.compile_mm_encoder:
        _refuse(plan, TOWER, "compiled towers do not show; start without compile_mm_encoder")
    ranks = config.parallel_config
    spread = ranks.tensor_parallel_size > 1 and config.model_config.multimodal_config
    if plan.needs & TOWER and spread and spread.mm_encoder_tp_mode == "data":
        why = "ranks with pictures of their own do not show; use mm_encoder_tp_mode='weights'"
        _refuse(plan, TOWER, why)
    if plan.parts and ranks.pipeline_parallel_size > 1:
        _refuse(plan, plan.needs, "needs the whole model; use pipeline_parallel_size=1")
    if plan.needs & ATTENTION and "fp8" in str(config.cache_config.cache_dtype):
        _refuse(plan, ATTENTION, "reads the KV cache; use kv_cache_dtype='auto'")


def together(plan: Plan) -> bool:
    """Whether all prompts of a request must be read whole, in one step.

    Rows that are edited by what another row shows need the same step, too.
    """
    return plan.whole or any(len(part.attend_rows) > 1 for part in plan.parts)


def check_rows(
    rows: Sequence[Row], plan: Plan, max_new_tokens: int, config: Any, replicas: int = 1
) -> None:
    """Refuse a request that can never fit.

    Args:
        rows: Its rows.
        plan: What acts.
        max_new_tokens: Most tokens written.
        config: vLLM's.
        replicas: Among how many the KV cache is divided.

    Raises:
        InvalidRequest: The sentence names the numbers and what to change.
    """
    limit = config.model_config.max_model_len
    for row in rows:
        if len(row.input_ids) >= limit:
            raise InvalidRequest(
                f"The prompt has {len(row.input_ids)} tokens (pictures included), the model's "
                f"context is {limit}; shorten the prompt or give fewer or smaller images."
            )
    slots = config.scheduler_config.max_num_seqs
    if len(rows) > slots:
        raise InvalidRequest(
            f"{plan.canonical} takes {len(rows)} rows, vLLM runs at most {slots} at once; raise "
            f"max_num_seqs to {len(rows)} or more."
        )
    size = config.cache_config.block_size
    lengths = [min(len(r.input_ids) + max_new_tokens, limit) for r in rows]
    need = sum(-(-n // size) for n in lengths)
    have = config.cache_config.num_gpu_blocks // replicas - 1  # vLLM counts those of all replicas
    if need > have:
        raise InvalidRequest(
            f"{plan.canonical} may need {need} blocks of {size} tokens of KV cache for {len(rows)} "
            f"rows of up to {max(lengths)} tokens, there are {have}; raise kv_cache_memory_bytes "
            "or lower max_new_tokens."
        )
    if together(plan):
        _check_one_step(rows, plan, config.scheduler_config)


def _check_one_step(rows: Sequence[Row], plan: Plan, config: Any) -> None:
    """Prompts that are read together start together, unchunked."""
    budget = config.max_num_batched_tokens - config.max_num_seqs
    prompts = sum(len(row.input_ids) for row in rows)
    if prompts > budget:
        raise InvalidRequest(
            f"{plan.canonical} reads all its prompts in one step: {prompts} tokens, and a step of "
            f"vLLM holds {budget} (max_num_batched_tokens - max_num_seqs); raise "
            f"max_num_batched_tokens to {prompts + config.max_num_seqs} or more."
        )
    pictures = sum({image.key: image.count for row in rows for image in row.images}.values())
    if pictures > config.max_num_encoder_input_tokens:
        raise InvalidRequest(
            f"{plan.canonical} encodes all its pictures in one step: {pictures} tokens, and vLLM "
            f"encodes {config.max_num_encoder_input_tokens}; raise max_num_batched_tokens."
        )


def edited_rows(part: TracedStrategy) -> set[str]:
    """Local names of rows that a part edits inside the model."""
    return {*part.attend_rows, *(part.strategy.steer_rows if part.steers else ())}


def _refuse(plan: Plan, needs: frozenset[str], why: str) -> None:
    named = quoted(plan.needs & needs or {"rows"})
    raise UnsupportedStrategy(f"{plan.canonical} needs {named}, which {why}, or engine='hf'.")
