"""Front end and workers: what one calls in the other, and how the values cross processes.

The front end calls a worker's methods by name (vLLM's ``collective_rpc``); `WorkerMixin` has a
method of each name below. Arguments and answers are plain values, packed where they hold tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from halludecode.core import errors
from halludecode.core.artifact import Artifact
from halludecode.core.errors import HalluDecodeError

# Methods of a worker. The prefix keeps them apart from vLLM's own methods of the same object.
SET_MODEL_INFO = "hd_set_model_info"  # (numbers of the model)
FIND_STRATEGIES = "hd_find_strategies"  # (names) -> those that the worker does not know
SET_ARTIFACT = "hd_set_artifact"  # (a strategy's canonical text, its packed tensors or None)
PREPARE_STATE = "hd_prepare_state"  # (request, plan, what its passes kept, entries wanted back)
READ_ACTIVATIONS = "hd_read_activations"  # (pass, what the front end knows of it)
DROP_ACTIVATIONS = "hd_drop_activations"  # (passes, passes that stay until told so)
REPORT = "hd_report"  # (groups), which are forgotten; gives a `GroupReport` of each
DROP_STATE = "hd_drop_state"  # (requests)


class GroupReport(TypedDict):
    """What workers tell of a group at its end.

    Args:
        differs: Tokens before each token that is not the plain model's own choice; None where only
            vLLM could tell.
        changed: Whether an edit inside the model made a difference.
        scores: First-step scores of the words asked for.
        decided: Whether they are the main row's own, see `Output`.
        readings: Per token, grounding, entropy and attention on the image, where it is explained.
        error: Why the answer is void, in a sentence; "" where it is not.
        kind: Class of that error, "" where it is none of ours.
    """

    differs: list[int] | None
    changed: bool
    scores: dict[str, float]
    decided: bool
    readings: list[list[Any]]
    error: str
    kind: str


def error_class(kind: str) -> type[HalluDecodeError]:
    """The class of an error a worker reported by its name."""
    named = getattr(errors, kind, None)
    ours = isinstance(named, type) and issubclass(named, HalluDecodeError)
    return named if ours else HalluDecodeError


def differing_within(differs: Sequence[int] | None, count: int) -> int | None:
    """How many of a report's places lie in an answer of so many tokens.

    VLLM may write on behind a stop string before it hears of it.
    """
    return None if differs is None else sum(place < count for place in differs)


def pack(value: Any) -> Any:
    """Tensors, artifacts, and lists and maps of them, as plain values that cross processes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": kind, "shape": list(value.shape), "bytes": flat.numpy().tobytes()}
    if isinstance(value, Artifact):
        fields = ("strategy", "parameters", "model", "tensors", "source", "notes")
        return {"artifact": {name: pack(getattr(value, name)) for name in fields}}
    if isinstance(value, Mapping):
        return {"map": {name: pack(entry) for name, entry in value.items()}}
    if isinstance(value, list | tuple):
        return [pack(entry) for entry in value]
    return value


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if isinstance(value, Mapping) and "tensor" in value:
        kind = getattr(torch, value["tensor"])
        if not value["bytes"]:
            return torch.empty(value["shape"], dtype=kind)
        return torch.frombuffer(bytearray(value["bytes"]), dtype=kind).reshape(value["shape"])
    if isinstance(value, Mapping) and "artifact" in value:
        return Artifact(**{name: unpack(entry) for name, entry in value["artifact"].items()})
    if isinstance(value, Mapping):
        return {name: unpack(entry) for name, entry in value["map"].items()}
    if isinstance(value, list | tuple):
        return [unpack(entry) for entry in value]
    return value
