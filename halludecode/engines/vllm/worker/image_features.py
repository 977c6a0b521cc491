"""Edits of picture features, applied in the worker where encoder outputs enter vLLM's cache."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger

from halludecode.core.errors import UnsupportedStrategy
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker.state import WorkerState

logger = init_logger("vllm.halludecode.worker")
Edits = dict[str, tuple[RowMetadata, int]]


def pending(runner: Any, scheduled: Mapping[str, list[int]]) -> Edits:
    """Pictures about to be encoded whose features some row edits: by identifier."""
    found: Edits = {}
    for request_id, pictures in scheduled.items():
        request = runner.requests[request_id]
        tag = runner.hd_desk.tag(request_id, request.sampling_params)
        if tag is not None and tag.features:
            for i in pictures:
                found[request.mm_features[i].identifier] = (tag, i)
    return found


def apply(runner: Any, identifier: str, edit: tuple[RowMetadata, int], features: Tensor) -> Tensor:
    """The picture's features as a row sees them; where that fails, its requests alone end."""
    desk, (tag, picture) = runner.hd_desk, edit
    try:
        return _edited(desk, tag, picture, features)
    except Exception as error:
        desk.note(tag.group).fail(error, tag.plan)
        desk.spoilt.put(identifier, desk.note(tag.group))
        return features.new_zeros((tag.features or [])[picture][-1], features.shape[-1])


def _edited(desk: WorkerState, tag: RowMetadata, picture: int, features: Tensor) -> Tensor:
    """[n, D] features made from the picture's own [N, D].

    Raises:
        UnsupportedStrategy: The edit's values depend on the request, so workers cannot make it.
    """
    at, name, seeded_by, index, identity, count = (tag.features or [])[picture]
    plan = desk.plan(tag.plan)
    part = plan.parts[at]  # type: ignore[union-attr]
    known = part.branches[name].features
    if known is None or known.key != identity:
        raise UnsupportedStrategy(
            f"{part.strategy.name}: the edit of row {name!r} has parameters that depend on the "
            "request; pass them as state (Edit.use)."
        )
    made = known(features.float(), edited=seeded_by, index=index, state=desk.states(tag)[at])
    if made.shape != (count, features.shape[-1]):
        raise UnsupportedStrategy(
            f"{part.strategy.name}: the edit of row {name!r} gave {list(made.shape)} features, and "
            f"{count} were announced; state the count in Branch.tokens."
        )
    return made.to(features)


def encode_again(runner: Any, identifier: str) -> bool:
    """Encode a picture that vLLM's cache lost while a request still reads it.

    It was seen once in an overloaded server, and is known of stock vLLM (issues 38551, 45658).

    Args:
        runner: Of the worker.
        identifier: The picture's.

    Returns:
        Whether a request here has the picture.
    """
    for name, request in runner.requests.items():
        for i, feature in enumerate(request.mm_features):
            if feature.identifier == identifier and feature.data is not None:
                logger.warning("features of a picture were lost and are made again: %s", name)
                runner._execute_mm_encoder(
                    SimpleNamespace(
                        scheduled_encoder_inputs={name: [i]},
                        free_encoder_mm_hashes=[],
                        ec_manager_metadata=None,
                    )
                )
                return True
    return False


def in_line(request: Any) -> tuple[Tensor, int]:
    """int64 [3, T] positions that stand in line, and the delta of what follows."""
    return torch.arange(request.num_prompt_tokens).expand(3, -1).contiguous(), 0
