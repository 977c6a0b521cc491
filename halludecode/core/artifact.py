"""Artifacts: tensors that `calibrate` made for one strategy on one model, named by their content.

An artifact is used only where a spec names its strategy. Which one it was stands in the canonical
spec (``pin``) or, for strategies that calibrate themselves, in the run record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData
from halludecode.core.prompt import digest

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.model_info import ModelInfo
    from halludecode.core.strategy import Strategy

PIN = "pin"  # the parameter by which a spec names an artifact; it never shapes one


@dataclass(frozen=True, eq=False, repr=False)
class Artifact(Mapping[str, "Tensor"]):
    """Tensors with an identity.

    Args:
        strategy: Name of the strategy.
        parameters: Those of its parameters that the tensors depend on.
        model: Digest of the model's weights.
        tensors: On the CPU.
        source: What they were made from, in words.
        notes: What making them found, in sentences.
    """

    strategy: str
    parameters: Mapping[str, Any]
    model: str
    tensors: Mapping[str, Tensor]
    source: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Digest of strategy, parameters, model and tensors; not of where they came from."""
        import torch

        parts: list[object] = [self.strategy, _text(self.parameters), self.model]
        for name, value in sorted(self.tensors.items()):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            parts += [name, value.dtype, list(value.shape), raw.numpy().tobytes()]
        return digest(*parts)

    @cached_property
    def name(self) -> str:
        """Strategy, parameters, model and content: the name of its file, and its pin."""
        settings = [f"{key}_{_word(value)}" for key, value in sorted(self.parameters.items())]
        return "-".join([self.strategy, *settings, self.model[:8], self.digest[:12]])

    def describe(self) -> dict[str, Any]:
        """Name, digest and origin, for run records."""
        return {
            "name": self.name,
            "digest": self.digest,
            "source": self.source,
            "notes": list(self.notes),
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:  # stands in the identity of edits that use it
        return f"Artifact({self.strategy}, {self.digest})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def shaping(strategy: Strategy) -> dict[str, Any]:
    """The parameters a strategy's artifact depends on, in the types JSON knows."""
    names = strategy.artifact_params
    chosen = {
        key: value
        for key, value in strategy.resolved().items()
        if key != PIN and (names is None or key in names)
    }
    return json.loads(_text(chosen))


def command(strategy: Strategy, model: str = "M") -> str:
    """The command line that makes a strategy's artifact."""
    default = type(strategy)()
    plain = shaping(default)
    changed = [f"{key}={value}" for key, value in shaping(strategy).items() if plain[key] != value]
    spec = f'"{strategy.name}({",".join(changed)})"' if changed else strategy.name
    return f"halludecode calibrate --model {model} {spec}"


def tensor(
    m: ModelInfo, strategy: Strategy, name: str, shape: tuple[int | None, ...]
) -> Tensor | None:
    """One tensor of the artifact, None where there is no artifact (listings, and before a check).

    Args:
        m: The model's numbers with its artifact.
        strategy: Whose artifact it is, for messages.
        name: Name of the tensor.
        shape: What it must have; None fits any size.

    Raises:
        InvalidData: The artifact lacks it, or its shape is another.
    """
    if not m.artifact:
        return None
    value = m.artifact.get(name)
    needed = "x".join("*" if size is None else str(size) for size in shape)
    held = "nothing" if value is None else "x".join(map(str, value.shape)) or "a single number"
    if (
        value is None
        or len(value.shape) != len(shape)
        or any(size not in (None, have) for size, have in zip(shape, value.shape, strict=True))
    ):
        raise InvalidData(
            f"The artifact of {strategy.name} holds {held} as {name!r}, and this model needs "
            f"{needed or 'a single number'}; make it anew with `{command(strategy)}`."
        )
    return value


def _text(parameters: Mapping[str, Any]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)


def _word(value: Any) -> str:
    return "".join(c if c.isalnum() or c == "." else "_" for c in str(value)).strip("_")
