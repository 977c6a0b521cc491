"""What a benchmark is: one class that finds, reads, asks, judges and scores.

Overriding a method is the declaration; nothing else is registered. A file in this folder, a module
of another package (entry-point group ``halludecode.benchmarks``) or a notebook cell are all alike::

    @benchmark("naturalbench", paper=PAPER)
    class NaturalBench(YesNoBenchmark):
        ...

Life of a sample: find -> read -> (group: limits, clusters) -> prompt -> judge -> score. Nothing
outside a benchmark's own file compares with its name; what tables, figures, controls and exports
need to know of it is written here as data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from halludecode.core.paper import Paper


@dataclass(frozen=True)
class Metric:
    """One metric as tables, figures and controls show it.

    Args:
        name: Its key in ``results.json``.
        title: What people call it, with its unit: ``accuracy %``.
        scale: What a value is multiplied by to be shown: 100 for fractions shown as percentages.
        lower_is_better: None where neither direction is better (a caption's length).
        beside: Further metrics shown in the same cell without interval: (name, short title).
        unless: A metric in whose presence this one is not shown.
        control: The control its differences must be read with: "yes_ratio" (accuracy at greedy's
            yes-ratio), "length" (captions cut to equal length), or None.
        headline: Whether the text under a table tells what its control came to.
    """

    name: str
    title: str
    scale: float = 100.0
    lower_is_better: bool | None = False
    beside: tuple[tuple[str, str], ...] = ()
    unless: str = ""
    control: Literal["yes_ratio", "length"] | None = None
    headline: bool = False


@dataclass(frozen=True)
class LmmsEvalTask:
    """How lmms-eval names a benchmark.

    Args:
        task: Its task.
        splits: Our split to its task.
        metrics: Our metric to (its name, factor, whether higher is better there).
    """

    task: str
    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, tuple[str, float, bool]] = field(
        default_factory=dict[str, tuple[str, float, bool]]
    )


@dataclass(frozen=True)
class Benchmark:
    """Base of all benchmarks: override what the benchmark does, leave the rest.

    Fields are its parameters, in the strategies' grammar: ``--tasks "chair(family=pattern)"``.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    source: ClassVar[str] = ""
    title: ClassVar[str] = ""  # what people call it
    text_kind: ClassVar[Literal["yes_no", "caption", "choice"]] = "yes_no"
    metrics: ClassVar[tuple[Metric, ...]] = ()  # what tables show, the main one first
    splits: ClassVar[tuple[str, ...]] = ()  # in order; results add their mean
    needs: ClassVar[str] = ""  # what files it reads, for "No questions for NAME; it needs ..."
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # our name to names in tables, ours first
    lmms_eval: ClassVar[LmmsEvalTask | None] = None
    vlmevalkit: ClassVar[str] = ""  # VLMEvalKit's name of the data set

    def find(self, folder: Path) -> Mapping[str | None, Path]:
        """Split to the file or folder that holds its questions; empty where there are none."""
        return {}

    def judge(self, sample: Any, answer: str) -> dict[str, Any]:
        """``parsed`` and ``score`` of one answer, as its line keeps them."""
        raise NotImplementedError

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Any:
        """Scores lines of a run folder, in the order of their ids."""
        raise NotImplementedError
