"""In a worker: edits of picture features, applied where encoder outputs enter vLLM's cache.

vLLM keeps what its vision tower gives by a picture's identifier. The front end gives a picture
whose features a row edits an identifier of its own, so that the edited features are in the cache
beside the plain ones and nobody else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger

from halludecode.core.errors import UnsupportedStrategy
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker.state import WorkerState

logger = init_logger("vllm.halludecode.worker")
Edits = dict[str, tuple[RowMetadata, int]]  # by identifier: whose edit, and of which picture


def edits_of(runner: Any, scheduled: Mapping[str, list[int]]) -> Edits:
    """Pictures about to be encoded whose features some row edits."""
    edits: Edits = {}
    for vllm_id, pictures in scheduled.items():
        request = runner.hd_requests[vllm_id]
        metadata = runner.hd_state.metadata(vllm_id, request.sampling_params)
        if metadata is not None and metadata.feature_edits:
            for i in pictures:
                edits[request.mm_features[i].identifier] = (metadata, i)
    return edits


def apply(runner: Any, identifier: str, edit: tuple[RowMetadata, int], features: Tensor) -> Tensor:
    """The picture's features as a row sees them; where that fails, its requests alone end."""
    state, (metadata, picture) = runner.hd_state, edit
    try:
        return _edited(state, metadata, picture, features)
    except Exception as error:
        record = state.record(metadata.group)
        record.fail(error, metadata.plan)
        state.failed_pictures.put(identifier, record)
        count = (metadata.feature_edits or [])[picture][-1]
        return features.new_zeros(count, features.shape[-1])


def _edited(state: WorkerState, metadata: RowMetadata, picture: int, features: Tensor) -> Tensor:
    """[n, D] features made from the picture's own [N, D].

    Raises:
        UnsupportedStrategy: The edit's values depend on the request, so workers cannot make it.
    """
    edits = metadata.feature_edits or []
    place, name, seeded_by, index, identity, count = edits[picture]
    plan = state.plan(metadata.plan)
    part = plan.parts[place]  # type: ignore[union-attr]
    edit = part.branches[name].features
    if edit is None or edit.key != identity:
        raise UnsupportedStrategy(
            f"{part.strategy.name}: the edit of row {name!r} has parameters that depend on the "
            "request; pass them as state (Edit.use)."
        )
    own_state = state.states_of(metadata)[place]
    edited = edit(features.float(), edited=seeded_by, index=index, state=own_state)
    if edited.shape != (count, features.shape[-1]):
        raise UnsupportedStrategy(
            f"{part.strategy.name}: the edit of row {name!r} gave {list(edited.shape)} features, "
            f"and {count} were announced; state the count in Branch.tokens."
        )
    return edited.to(features)


def encode_again(runner: Any, identifier: str) -> bool:
    """Encode a picture that vLLM's cache lost while a request still reads it.

    The scheduler says what leaves the worker's encoder cache. Where it lets go of a picture that a
    row has yet to read, vLLM's runner ends the engine with an error, and everybody's requests
    with it. It was seen once in an overloaded server, and is known of stock vLLM (issues 38551,
    45658). What is encoded here is what was lost: edits of features apply to it again.

    Args:
        runner: Of the worker.
        identifier: The picture's.

    Returns:
        Whether a request here has the picture.
    """
    for vllm_id, request in runner.hd_requests.items():
        for i, feature in enumerate(request.mm_features):
            if feature.identifier == identifier and feature.data is not None:
                logger.warning("features of a picture were lost and are made again: %s", vllm_id)
                runner.hd_encode(vllm_id, i)
                return True
    return False


def in_line(request: Any) -> tuple[Tensor, int]:
    """int64 [3, T] positions that stand in line, and the delta of what follows."""
    return torch.arange(request.num_prompt_tokens).expand(3, -1).contiguous(), 0
