"""``@benchmark``: a class becomes a benchmark, found by file name, entry point or notebook cell."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

from halludecode.core.errors import InvalidParameter
from halludecode.core.params import param
from halludecode.core.registry import Registry
from halludecode.evals.benchmarks.base import Benchmark, Metric

if TYPE_CHECKING:
    from halludecode.core.paper import Paper

B = TypeVar("B", bound="type[Benchmark]")

BENCHMARKS: Registry[type[Benchmark]] = Registry(
    kind="task",
    package="halludecode.evals.benchmarks",
    group="halludecode.benchmarks",
    missing=InvalidParameter,
)


@dataclass_transform(frozen_default=True, field_specifiers=(param,))
def benchmark(name: str, *, paper: Paper | None = None) -> Callable[[B], B]:
    """Make a class a benchmark: frozen, registered under ``name``.

    Args:
        name: Lower-case name used in ``--tasks``; unique.
        paper: The citation.

    Raises:
        InvalidParameter: The name is taken by another file or is not a plain word.
    """

    def register(cls: B) -> B:
        cls.name, cls.paper = name, paper
        try:
            cls.source = str(Path(inspect.getfile(cls)))
        except (OSError, TypeError):  # typed in a notebook cell
            cls.source = f"<{cls.__module__}>"
        frozen = dataclass(frozen=True)(cls)
        BENCHMARKS.add(name, frozen)
        return frozen

    return register


class NotInstalled(Benchmark):
    """Stands in for a benchmark that a run folder names and nobody has installed here."""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """As it stands in ``results.json``: what it means is not known here."""
        return Metric(name, name, scale=1.0, lower_is_better=None, digits=3)


def benchmark_named(task: str) -> type[Benchmark]:
    """The class behind a task of a run folder; `NotInstalled` under its name where there is none.

    What shows results uses this: a run of a plugin's benchmark is still to be read where the
    plugin is gone.
    """
    try:
        return BENCHMARKS.get(task)
    except InvalidParameter:
        return _not_installed(task)


@cache
def _not_installed(task: str) -> type[Benchmark]:
    return type("NotInstalled", (NotInstalled,), {"name": task, "title": task.upper()})
