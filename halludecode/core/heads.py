"""Attention heads one by one: ZeroTuning's profiling, and maps saved by `halludecode heads`.

Profiling (arXiv:2505.11739) tries one strength in every head alone. Heads whose score rises are
up-effective, heads whose score falls down-effective; the larger kind is kept and its strength
searched.

A saved map feeds a strategy through the artifact mechanism: it is read once, where the model was
loaded, its numbers travel to wherever the strategy runs, and the run record keeps their digest.

Shapes: L decoder layers, H query heads, R requests, d head size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from halludecode.core.artifact import Artifact
from halludecode.core.calibration import Calibration
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.model_info import ModelInfo
from halludecode.core.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.attention import Attention

PROBE = 4.0
UP, DOWN = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0), (0.7, 0.5, 0.3, 0.2, 0.1)
SCHEMA = 1  # of a saved map
MOST_BYTES = 64 << 20  # of a saved map; those of the largest models have a few hundred KiB


def alone(cal: Calibration, m: ModelInfo, score: Callable[[Tensor], float]) -> Tensor:
    """float32 [L, H]: ``score(heads bool [L, H])`` of every head alone.

    Where a layer has none, it is what the score is without a head.
    """
    import torch

    shape = (m.num_layers, m.num_heads)
    single = torch.eye(m.num_layers * m.num_heads, dtype=torch.bool).reshape(-1, *shape)
    none = score(torch.zeros(shape, dtype=torch.bool)) if m.recurrent else 0.0
    places = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    given = zip(places, cal.track(list(single)), strict=True)
    scores = [none if layer in m.recurrent else score(head) for (layer, _), head in given]
    return torch.tensor(scores).reshape(shape)


def profile(
    cal: Calibration, m: ModelInfo, score: Callable[[float, Tensor], float]
) -> Mapping[str, Tensor]:
    """Find heads and strength.

    Args:
        cal: Shows progress, and takes a note of what was found.
        m: The model's numbers.
        score: ``(gamma, heads bool [L, H]) -> float``, higher is better; gamma 1 is the plain
            model.

    Returns:
        "heads": bool [L, H]; "gamma": float32 [], 1 where nothing beats the plain model; "gain":
        float32 [L, H], what gamma 4 did in each head alone.
    """
    import torch

    plain = score(1.0, torch.zeros(m.num_layers, m.num_heads, dtype=torch.bool))
    gain = alone(cal, m, lambda head: score(PROBE, head) - plain)
    up = bool((gain > 0).sum() >= (gain < 0).sum())
    heads = gain > 0 if up else gain < 0
    tried = {1.0: plain}
    if heads.any():
        tried |= {g: score(g, heads) for g in cal.track(UP if up else DOWN)}
    gamma = max(tried, key=lambda g: (tried[g], -abs(math.log(g))))
    kind = "accuracy" if cal.supervised else "minus mean entropy"
    cal.notes.append(
        f"{int(heads.sum())} of {heads.numel()} heads are {'up' if up else 'down'}-effective; "
        f"{kind} {plain:.4f} -> {tried[gamma]:.4f} at gamma {gamma:g}"
    )
    return {"heads": heads, "gamma": torch.tensor(gamma), "gain": gain}


# Saved maps -------------------------------------------------------------------------------------


def read_map(path: str | Path) -> dict[str, Any]:
    """The content of a saved map.

    Raises:
        InvalidData: It cannot be read, or is no map of this version.
    """
    try:
        file = Path(path).expanduser()
        # Devices and pipes have no end.
        if file.exists() and not (file.is_file() and file.stat().st_size <= MOST_BYTES):
            raise InvalidData(
                f"{path}: not a map that `halludecode heads` saved; make one with it."
            )
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidData(
            f"{path}: the map cannot be read ({error.strerror}); make one with `halludecode heads`."
        ) from None
    except ValueError:
        content = None
    needed = ("metric", "model_digest", "layers", "heads", "values", "parts")
    if (
        not isinstance(content, dict)
        or content.get("schema") != SCHEMA  # pyright: ignore[reportUnknownMemberType]
        or any(name not in content for name in needed)
    ):
        raise InvalidData(f"{path}: not a map that `halludecode heads` saved; make one with it.")
    return content  # pyright: ignore[reportUnknownVariableType]


class Mapped(Strategy):
    """A strategy whose heads may come from a saved map, named by its parameter ``map``."""

    artifact_params: ClassVar[tuple[str, ...] | None] = ("map",)
    metrics: ClassVar[tuple[str, ...]] = ()  # of the maps it can use
    map_part: ClassVar[str] = ""  # the part of the map it uses; "" for the values themselves

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "map", None) is not None:  # read when first used, on the engine's side
            object.__setattr__(self, "artifact", "optional")

    def calibrate(self, cal: Calibration, m: ModelInfo) -> Mapping[str, Tensor]:
        """The map's values and the digest of the model it was made on."""
        import torch

        path: str | None = getattr(self, "map", None)
        if path is None:
            raise InvalidParameter(
                f"{self.name} has nothing to calibrate without a map: make one with `halludecode "
                f"heads --metric {self.metrics[0]}` and give {self.name}(map=FILE)."
            )
        content = read_map(path)
        if content["metric"] not in self.metrics:
            raise InvalidParameter(
                f"{self.name}(map={path}): this is a map of {content['metric']!r}; {self.name} "
                f"needs {' or '.join(map(repr, self.metrics))} (`halludecode heads --metric`)."
            )
        if (content["layers"], content["heads"]) != (m.num_layers, m.num_heads):
            raise InvalidParameter(
                f"{self.name}(map={path}): the map has {content['layers']} layers of "
                f"{content['heads']} heads, this model {m.num_layers} of "
                f"{m.num_heads}; make a map of this model."
            )
        part = content["parts"].get(self.map_part)
        cal.notes.append(f"{content['metric']} over {content.get('samples')} samples, {path}")
        digest = str(content["model_digest"]).encode()
        return {
            "values": torch.tensor(part["values"] if part else content["values"]),
            "model": torch.tensor(list(digest), dtype=torch.uint8),
        }

    def values(self, m: ModelInfo) -> Tensor | None:
        """float32 [L, H] of the map; None without one (listings, and before the engine read it).

        Raises:
            InvalidParameter: The map was made on another model.
        """
        artifact = m.artifact
        if not artifact:
            return None
        # Workers get the bare tensors: whose model it is was judged here.
        if isinstance(artifact, Artifact) and "model" in artifact:
            weights = artifact["model"].numpy().tobytes().decode()
            if weights != artifact.model:
                raise InvalidParameter(
                    f"{self.name}(map={getattr(self, 'map', None)}): the map was made on another "
                    f"model (weights {weights[:8]}, here {artifact.model[:8]}); make a map of this "
                    "model."
                )
        return artifact["values"]

    def row(self, a: Attention) -> Tensor:
        """float32 [1, H]: the map's values in this layer; zeros where there are none yet."""
        import torch

        values, device = self.values(a.m), a.image.of("main").device
        return (
            torch.zeros(1, a.m.num_heads, device=device)
            if values is None
            else values[a.layer][None].to(device)
        )


def divergence(seen: Tensor, blind: Tensor) -> tuple[Tensor, Tensor]:
    """VHD of one layer's heads (arXiv:2412.13949), and the same with outliers zeroed.

    An outlier's divergence and image-free norm both exceed their layer's mean by more than one
    standard deviation (ddof 0); squared norms would find others.

    Args:
        seen: float32 [..., H, d], head outputs before o_proj with the image.
        blind: The same without it.

    Returns:
        Two of float32 [..., H].
    """
    vhd, norm = (seen - blind).square().sum(-1).sqrt(), blind.square().sum(-1)
    outlier = (vhd > _mean_plus_std(vhd)) & (norm > _mean_plus_std(norm))
    return vhd, vhd.masked_fill(outlier, 0)


def _mean_plus_std(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=0)


def above_median(values: Tensor) -> Tensor:
    """Bool [..., H]: strictly above the median; of an even count, the mean of the middle two."""
    return values > values.quantile(0.5, dim=-1, keepdim=True)


def pictured(a: Attention) -> Tensor:
    """Bool [R, 1]: requests with a picture; the others are left alone."""
    return a.image.of("main").any(-1, keepdim=True)


def largest(values: Tensor, k: int) -> Tensor:
    """Bool [L, H]: the k largest of all heads; of equal ones the first."""
    flat = values.flatten()
    return (flat.argsort(descending=True, stable=True).argsort() < k).reshape(values.shape)


def one_heads(m: ModelInfo, pairs: tuple[int, ...], owner: str = "") -> Tensor:
    """float32 [L, H], 1 at every (layer, head) of the flat list ``pairs``.

    Raises:
        InvalidParameter: Their number is odd, or the model has no such head.
    """
    import torch

    mask = torch.zeros(m.num_layers, m.num_heads)
    places = list(zip(pairs[::2], pairs[1::2], strict=False))
    if len(pairs) % 2 or any(
        not (0 <= i < m.num_layers and 0 <= h < m.num_heads) for i, h in places
    ):
        raise InvalidParameter(
            f"{owner}(heads=...): heads must be layer, head, layer, head, ... within this model's "
            f"{m.num_layers} layers of {m.num_heads} heads, counted from 0."
        )
    for layer, head in places:
        mask[layer, head] = 1
    return mask
