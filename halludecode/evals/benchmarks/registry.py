"""``@benchmark``: a class becomes a benchmark, found by file name, entry point or notebook cell.

Which are meant is written as strategies are: ``"pope,chair(family=pattern)"``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from halludecode.core.errors import InvalidParameter
from halludecode.core.params import check_class, check_name, param
from halludecode.core.registry import Registry
from halludecode.core.spec import check_names, read_item, split
from halludecode.evals.benchmarks.base import Benchmark, Metric
from halludecode.evals.data.run_files import RUN_FACTS

if TYPE_CHECKING:
    from halludecode.core.paper import Paper
    from halludecode.evals.statistics.score import Score

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
        InvalidParameter: The name is taken by another file or is not a plain word, or the class
            has a misspelt method or a field that is no `param`.
    """
    check_name(name, "benchmark")

    def register(cls: B) -> B:
        check_class(cls, Benchmark, name)
        if name in RUN_FACTS:
            raise InvalidParameter(f"task name {name!r} is a word of run.json; choose another.")
        cls.name, cls.paper = name, paper
        try:
            cls.source = str(Path(inspect.getfile(cls)))
        except (OSError, TypeError):  # typed in a notebook cell
            cls.source = f"<{cls.__module__}>"
        frozen = dataclass(frozen=True)(cls)
        frozen.params()
        BENCHMARKS.add(name, frozen)
        return frozen

    return register


def standard() -> tuple[str, ...]:
    """What is run where no benchmark is named."""
    chosen = [cls for cls in BENCHMARKS if cls.standard]
    return tuple(cls.name for cls in sorted(chosen, key=lambda cls: cls.standard))


def standard_of(text_kind: str) -> type[Benchmark]:
    """The benchmark that stands for questions ("yes_no") or descriptions ("caption")."""
    return next(cls for cls in map(BENCHMARKS.get, standard()) if cls.text_kind == text_kind)


def choose(tasks: Any, **options: Any) -> tuple[Benchmark, ...]:
    """The benchmarks that are named, their parameters set.

    Args:
        tasks: ``"pope,chair(family=pattern)"``, or a list of names, of YAML's one-key maps, or of
            benchmarks.
        **options: Old names of single parameters (`Benchmark.aliases`); None means not given.

    Raises:
        InvalidParameter: None is named, one twice, one that does not exist, or a parameter that
            does not exist or fit; near misses are named.
    """
    chosen = [_one(item) for item in _items(tasks)]
    names = [b.name for b in chosen]
    if not chosen or len(set(names)) < len(names):
        raise InvalidParameter(
            f"Tasks: name each task once; the known ones are {', '.join(BENCHMARKS.names())}."
        )
    options = {name: value for name, value in options.items() if value is not None}
    for option, value in options.items():
        owners = [cls for cls in BENCHMARKS if option in cls.aliases]
        check_option(option)
        if not any(cls.name in names for cls in owners):
            who = " or ".join(cls.name for cls in owners)
            raise InvalidParameter(f"{option} is for {who}, which is not among the tasks.")
        for i, b in enumerate(chosen):
            if option in b.aliases:
                value = str(value) if isinstance(value, Path) else value
                value = tuple(value) if isinstance(value, list) else value
                chosen[i] = replace(b, **{b.aliases[option]: value})
    return tuple(chosen)


def check_option(option: str, known: Sequence[str] = ()) -> None:
    """Refuses an option that is none of ``known`` and no old name of a parameter.

    Raises:
        InvalidParameter: With near misses.
    """
    old = [name for cls in BENCHMARKS for name in cls.aliases]
    if option not in {*known, *old}:
        close = difflib.get_close_matches(option, [*known, *old], n=2)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise InvalidParameter(
            f"There is no option {option!r}.{hint} Parameters of a benchmark are written "
            'behind its name: tasks=["chair(family=pattern)"].'
        )


def _items(tasks: Any) -> list[Any]:
    """Benchmarks, item texts and one-key maps, however they are given."""
    if isinstance(tasks, Benchmark):
        return [tasks]
    if isinstance(tasks, str):
        return [text for text in split(tasks, ",", tasks, "Tasks") if text.strip()]
    if isinstance(tasks, Mapping):
        return [{name: values} for name, values in tasks.items()]
    if isinstance(tasks, type) and issubclass(tasks, Benchmark):
        return [tasks()]
    if not isinstance(tasks, Iterable):
        raise InvalidParameter(
            f"Tasks: {tasks!r} names none; write 'pope,chair(family=pattern)', or a list of names "
            "and one-key maps."
        )
    return [item for entry in tasks for item in _items(entry)]


def _one(item: Any) -> Benchmark:
    if isinstance(item, Benchmark):
        if not item.name:
            raise InvalidParameter(
                f"Task {type(item).__name__} has no name; write @benchmark(NAME) before its class."
            )
        return item
    if isinstance(item, Mapping):
        ((name, values),) = item.items()
        if values is not None and not isinstance(values, Mapping):
            raise InvalidParameter(f"Task {name}: parameters must be a map, not {values!r}.")
    else:
        name, values = read_item(item, item, "Task")
    cls = BENCHMARKS.get(str(name))
    values = {str(key): value for key, value in (values or {}).items()}
    check_names(cls.name, values, [spec.name for spec in cls.params()])
    return cls(**values)


class NotInstalled(Benchmark):
    """Stands in for a benchmark that a run folder names and nobody has installed here."""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """As it stands in ``results.json``: what it means is not known here."""
        return Metric(name, name, scale=1.0, lower_is_better=None, digits=3)

    def score(self, lines: Sequence[Mapping[str, Any]]) -> Score:
        """Cannot be done without it."""
        raise InvalidParameter(
            f"Task {self.name!r} is not installed here, and its answers cannot be scored without "
            f"it; known are {', '.join(BENCHMARKS.names())}."
        )


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
