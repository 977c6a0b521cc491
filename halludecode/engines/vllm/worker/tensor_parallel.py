"""In a worker: all heads on every tensor-parallel rank, so that strategies see one whole model.

Every rank makes the same edits of the same numbers and keeps its own heads of what comes out. Ranks
run the same steps, so they ask for one another's heads in the same order.
"""

from __future__ import annotations

from torch import Tensor


def all_heads(x: Tensor, dim: int) -> Tensor:
    """[.., H, ..] of the [.., h, ..] that this rank has."""
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_gather,
    )

    alone = get_tensor_model_parallel_world_size() == 1
    return x if alone else tensor_model_parallel_all_gather(x.contiguous(), dim=dim)


def own_heads(x: Tensor, dim: int) -> Tensor:
    """[.., h, ..] of this rank from the [.., H, ..] of all."""
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    size = x.shape[dim] // get_tensor_model_parallel_world_size()
    return x.narrow(dim, get_tensor_model_parallel_rank() * size, size)


def divided() -> bool:
    """Whether there is more than one rank."""
    from vllm.distributed import get_tensor_model_parallel_world_size

    return get_tensor_model_parallel_world_size() > 1
