"""A map of heads: one number per layer and head, with its interval, its model, and where from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import ndarray

from halludecode.core.errors import InvalidData, InvalidParameter, MissingExtra
from halludecode.core.heads import SCHEMA, read_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

METRICS = ("vhd", "mass", "ablation")


class Head(NamedTuple):
    """One head of a map, layers and heads counted from 0."""

    layer: int
    head: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """float64 [L, H] values with the ends of their 95 % intervals."""

    values: ndarray
    low: ndarray
    high: ndarray


@dataclass(frozen=True)
class HeadMap:
    """A sensitivity map.

    Args:
        metric: "vhd", "mass" or "ablation".
        model: The model's name.
        model_digest: Identity of its weights.
        samples: How many samples it is the mean of.
        pictures: How many different ones; intervals are over these.
        grid: The map.
        parts: Further maps: "inliers" of vhd (outliers zeroed, as VHR counts them), "sinks" and
            "others" of mass, "hallucinated" and "real" of ablation on object words.
        numbers: name -> {"value", "low", "high"}, such as the mean T-VHD of a token.
        stability: Spearman's rank correlation of the heads between two halves of the pictures; None
            where there is none.
        unit: Of the values.
        source: Where the samples are from.
        settings: How it was measured.
        notes: Sentences a reader should know.
    """

    metric: str
    model: str
    model_digest: str
    samples: int
    pictures: int
    grid: Grid
    parts: Mapping[str, Grid] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stability: float | None = None
    unit: str = ""
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> ndarray:
        """float64 [L, H]."""
        return self.grid.values

    @property
    def low(self) -> ndarray:
        """float64 [L, H], lower ends of the 95 % intervals."""
        return self.grid.low

    @property
    def high(self) -> ndarray:
        """float64 [L, H], upper ends."""
        return self.grid.high

    @property
    def signed(self) -> bool:
        """Whether values lie on both sides of zero by their nature."""
        return self.metric == "ablation"

    def top(self, k: int = 10, *, part: str | None = None, largest: bool = True) -> list[Head]:
        """The k heads with the largest (smallest) values, in order; of equal ones the first."""
        if k < 1:
            raise InvalidParameter(f"top({k}): k must be at least 1.")
        grid = self._part(part)
        flat = grid.values.ravel()
        order = np.argsort(-flat if largest else flat, kind="stable")[:k]
        places = [divmod(int(i), grid.values.shape[1]) for i in order]
        return [
            Head(i, h, *(float(x[i, h]) for x in (grid.values, grid.low, grid.high)))
            for i, h in places
        ]

    def table(self, k: int = 10, *, largest: bool = True) -> Table:
        """The top k as a Rich table."""
        from rich.table import Table

        which = "highest" if largest else "lowest"
        table = Table(title=f"{self.metric}: {which} {k} heads", title_justify="left")
        for name in ("rank", "layer", "head", "value", "95 % interval", *self.parts):
            table.add_column(name, justify="right")
        for rank, head in enumerate(self.top(k, largest=largest), start=1):
            beside = [f"{part.values[head.layer, head.head]:.4g}" for part in self.parts.values()]
            between = f"{head.low:.4g} .. {head.high:.4g}"
            value = f"{head.value:.4g}"
            table.add_row(str(rank), str(head.layer), str(head.head), value, between, *beside)
        return table

    def plot(self, *, part: str | None = None, top: int = 10) -> Figure:
        """The map as a Matplotlib figure, 900 pixels wide at its own dpi.

        Args:
            part: One of ``parts``; None draws the map itself.
            top: How many heads are ringed.

        Raises:
            MissingExtra: Matplotlib is not installed.
        """
        from halludecode.analysis.head_map_plot import draw

        return draw(self, part, top)

    def agreement(self, other: HeadMap) -> float | None:
        """Spearman's rank correlation with another map of the same model; None if undefined."""
        if self.model_digest != other.model_digest or self.values.shape != other.values.shape:
            raise InvalidParameter("Two maps of different models cannot be compared head by head.")
        return spearman(self.values, other.values)

    def save(self, path: str | Path) -> Path:
        """Write the map as JSON, in one step; a strategy takes it as ``map=PATH``."""
        from halludecode.evals.data.run_files import write_json

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.to_dict())
        except OSError as error:
            raise InvalidData(f"{path}: cannot be written ({error.strerror}).") from None
        return path

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        count = {"layers": self.values.shape[0], "heads": self.values.shape[1]}
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in ("metric", "model", "model_digest")},
            **count,
            "samples": self.samples,
            "pictures": self.pictures,
            "unit": self.unit,
            "source": self.source,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "stability": self.stability,
            "numbers": {name: dict(value) for name, value in self.numbers.items()},
            **_plain(self.grid),
            "parts": {name: _plain(part) for name, part in self.parts.items()},
        }

    @classmethod
    def load(cls, path: str | Path) -> HeadMap:
        """Read a saved map.

        Raises:
            InvalidData: It cannot be read, or is no map of this version.
        """
        saved = read_map(path)
        try:
            return cls(
                **{name: saved[name] for name in ("metric", "model", "model_digest", "samples")},
                pictures=saved["pictures"],
                grid=_grid(saved),
                parts={name: _grid(part) for name, part in saved["parts"].items()},
                numbers=saved["numbers"],
                stability=saved["stability"],
                **{name: saved[name] for name in ("unit", "source", "settings")},
                notes=tuple(saved["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidData(
                f"{path}: a damaged map ({error}); make it anew with `halludecode heads`."
            ) from None

    def _part(self, name: str | None) -> Grid:
        if name is None:
            return self.grid
        if name not in self.parts:
            part_names = ", ".join(self.parts) or "none"
            raise InvalidParameter(f"This map has no part {name!r}; its parts: {part_names}.")
        return self.parts[name]


def spearman(a: ndarray, b: ndarray) -> float | None:
    """Spearman's rank correlation of two maps; None where one is constant.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError:
        raise MissingExtra(
            'Rank correlations need SciPy: pip install "halludecode[eval]".'
        ) from None
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return None
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def _plain(grid: Grid) -> dict[str, Any]:
    return {
        name: [[_finite(x) for x in row] for row in getattr(grid, name).tolist()]
        for name in ("values", "low", "high")
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _grid(saved: Mapping[str, Any]) -> Grid:
    return Grid(*(np.array(saved[name], dtype=np.float64) for name in ("values", "low", "high")))
