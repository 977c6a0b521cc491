"""What travels with a request from the front end to the scheduler and the workers.

It rides in ``SamplingParams.extra_args["hd"]`` as plain numbers, strings and lists; strategies
travel as their canonical text and are compiled again where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from halludecode.core.artifact import Artifact

KEY = "hd"
VERSION = 1


@dataclass(frozen=True)
class RowMetadata:
    """One row of a request's group.

    Args:
        group: Id of the group: the request id of its main row.
        role: Place among the rows, 0 is main.
        rows: Names of all rows, main first.
        lives: "answer" or "prefill" of each row.
        plan: Canonical text of the parts that act, "" for the plain model.
        job: Whose captures and state these rows read; children of a request share it.
        local: Per part of the plan: pairs of a local row name and its name in ``rows``.
        pictured: Whether the main row has a picture; without one every strategy is the identity.
        noise: Key of the seeded noise this row's tokens are drawn with; -1 leaves drawing to vLLM.
        whole: Whether all rows must prefill unchunked in one forward.
        features: Edits of picture features, per picture: part, local row name, digest of what is
            edited, index of the picture, identity of the edit, tokens it leaves.
        line: Image tokens were chosen and form no raster any more: positions stand in line.
        words: Words whose first-step scores are wanted, with their token ids.
        capture: What a pass of the plain model keeps, see `activations.capture_of`; None for
            answers.
    """

    group: str
    role: int
    rows: list[str]
    lives: list[str]
    plan: str = ""
    job: str = ""
    local: list[list[list[str]]] | None = None
    pictured: bool = False
    noise: int = -1
    whole: bool = False
    features: list[list[Any]] | None = None
    line: bool = False
    words: dict[str, list[int]] | None = None
    capture: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """This row's name."""
        return self.rows[self.role]

    @property
    def size(self) -> int:
        """Rows of the group."""
        return len(self.rows)

    @property
    def life(self) -> str:
        """This row's life."""
        return self.lives[self.role]

    def extra(self) -> dict[str, Any]:
        """The value of ``SamplingParams.extra_args``."""
        return {KEY: {"v": VERSION, **{k: v for k, v in asdict(self).items() if v is not None}}}


def metadata_of(params: Any) -> RowMetadata | None:
    """The tag of a request's sampling parameters; None for everybody else's requests."""
    extra: Mapping[str, Any] | None = getattr(params, "extra_args", None)
    found = extra.get(KEY) if extra else None
    if found is None or found.get("v") != VERSION:
        return None
    return RowMetadata(**{name: value for name, value in found.items() if name != "v"})


def name_of(count: int, replica: int) -> str:
    """Name of a request or of a pass before it; those of its rows begin with it."""
    return f"hd{count}@{replica}"


def replica_of(name: str) -> int:
    """The replica that all rows and passes of a request go to, from any of their names."""
    return int(name.partition("@")[2].partition(".")[0])


def kept(differs: Sequence[int] | None, count: int) -> int | None:
    """How many of a note's places lie in an answer of so many tokens.

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
        return {"map": {name: pack(one) for name, one in value.items()}}
    if isinstance(value, list | tuple):
        return [pack(one) for one in value]
    return value


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if isinstance(value, Mapping) and "tensor" in value:
        kind = getattr(torch, value["tensor"])
        if not value["bytes"]:
            return torch.empty(value["shape"], dtype=kind)
        return torch.frombuffer(bytearray(value["bytes"]), dtype=kind).reshape(value["shape"])
    if isinstance(value, Mapping) and "artifact" in value:
        return Artifact(**{name: unpack(one) for name, one in value["artifact"].items()})
    if isinstance(value, Mapping):
        return {name: unpack(one) for name, one in value["map"].items()}
    if isinstance(value, list | tuple):
        return [unpack(one) for one in value]
    return value
