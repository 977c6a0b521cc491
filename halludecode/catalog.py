"""What there is: strategies with their needs and cost, benchmarks with their metrics and data."""

from __future__ import annotations

import inspect
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from halludecode.core.needs import KINDS
from halludecode.core.paper import Paper
from halludecode.core.params import Param
from halludecode.core.registry import STRATEGIES
from halludecode.testbed.cache import cache_folder

PACKAGE = Path(__file__).parent

# Methods that people look for and that are not here: what each would need.
ABSENT = {
    "dlc": "SigLIP's score of picture and words so far for each of 50 candidate tokens, at every "
    "token: words of candidates inside `combine`, which sees numbers alone",
    "rvcd": "ACL Findings 2025: a bank of pictures of single objects, and a row for each that the "
    "first answer names",
    "shield": "ICLR 2026: a picture attacked by gradients through CLIP, and patches reweighted by "
    "CLIP's score of the model's own caption",
}


@dataclass(frozen=True)
class Info:
    """What `halludecode list` shows of a strategy."""

    name: str
    summary: str
    paper: Paper | None
    params: tuple[Param, ...]
    needs: tuple[str, ...]
    rows: tuple[str, ...]
    cost: str
    engines: tuple[str, ...]
    off: dict[str, Any]
    decided: str  # when its main row decides a token alone, in words
    kinds: tuple[str, ...]  # what it does by its hooks, of `core.needs.KINDS`
    doc: str


@dataclass(frozen=True)
class BenchmarkInfo:
    """What `halludecode list --tasks` shows of a benchmark."""

    name: str
    title: str
    summary: str
    paper: Paper | None
    params: tuple[Param, ...]
    metrics: tuple[str, ...]
    splits: tuple[str, ...]
    asks: str  # yes_no, caption or choice
    needs: str
    example: dict[str, Any]  # a row of its first table, under the names it has there
    doc: str


def info(name: str) -> Info:
    """Everything known of one strategy at its defaults.

    What tracing finds is kept in the user's cache (`cache_folder`) for as long as no file of
    this package changes, so that torch is loaded for the first listing alone.
    """
    cls = STRATEGIES.get(name)
    facts = _Facts.of(cls)
    module = inspect.getmodule(cls)
    doc = inspect.cleandoc((module and module.__doc__) or cls.__doc__ or "")
    return Info(
        name=name,
        summary=doc.splitlines()[0] if doc else "",
        paper=cls.paper,
        params=cls.params(),
        needs=facts.needs,
        rows=facts.rows,
        cost=facts.cost,
        engines=facts.engines,
        off=dict(cls.off),
        decided=facts.decided,
        kinds=facts.kinds,
        doc=doc,
    )


@dataclass(frozen=True)
class _Facts:
    """What only tracing tells of a strategy; it needs torch."""

    needs: tuple[str, ...]
    rows: tuple[str, ...]
    cost: str
    engines: tuple[str, ...]
    decided: str
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, strategy: Any) -> _Facts:
        """From the cache, or traced; a strategy that is not this package's own always is."""
        own = Path(inspect.getfile(strategy)).is_relative_to(PACKAGE) if _has_file(strategy) else 0
        file = _cache() / f"{strategy.name}.json" if own else None
        if file is not None:
            with suppress(OSError, ValueError, TypeError):
                return cls(**{k: _frozen(v) for k, v in json.loads(file.read_text()).items()})
        facts = cls.traced(strategy)
        if file is not None:
            with suppress(OSError):  # a home that cannot be written to costs time, nothing else
                file.parent.mkdir(parents=True, exist_ok=True)
                beside = file.with_suffix(f".{os.getpid()}")
                beside.write_text(json.dumps(vars(facts)))
                beside.replace(file)
        return facts

    @classmethod
    def traced(cls, strategy: Any) -> _Facts:
        """Found by running every hook once."""
        from halludecode.core.plan import compile_plan, typical_model_info
        from halludecode.engines.api import engines_providing

        plan = compile_plan(strategy(), replace(typical_model_info(), artifact={}))
        decided = plan.parts[0].decides if plan.can_wait else ""
        needs = tuple(sorted(plan.needs))
        engines = engines_providing(plan.needs)
        kinds = next((part.kinds for part in plan.parts), KINDS[-1:])  # greedy is no part
        return cls(needs, plan.rows, str(plan.cost), engines, decided, kinds)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _has_file(strategy: Any) -> bool:
    """Whether a class is from a file: one of a notebook's cells may change and keep its name."""
    try:
        return bool(inspect.getfile(strategy))
    except (OSError, TypeError):
        return False


@cache
def _cache() -> Path:
    """The folder for facts about the package as it is now: files, Python and torch."""
    files = sorted(PACKAGE.rglob("*.py"))
    stats = [(str(file), (s := file.stat()).st_mtime_ns, s.st_size) for file in files]
    about = (stats, version("torch"), platform.python_version())
    return cache_folder("strategies") / sha256(repr(about).encode()).hexdigest()[:16]


def strategies() -> list[Info]:
    """All strategies, sorted by name."""
    return [info(name) for name in STRATEGIES.names()]


def benchmark_info(name: str) -> BenchmarkInfo:
    """Everything known of one benchmark."""
    from halludecode.evals.benchmarks.registry import BENCHMARKS

    cls = BENCHMARKS.get(name)
    doc = inspect.cleandoc(cls.__doc__ or "")
    kinds = cls.columns[:1]
    named = {ours: theirs[0] for k in kinds for ours, theirs in {**k.needs, **k.takes}.items()}
    row = next(iter(cls.examples), {})
    return BenchmarkInfo(
        name=name,
        title=cls.title or name,
        summary=doc.splitlines()[0] if doc else "",
        paper=cls.paper,
        params=cls.params(),
        metrics=tuple(metric.name for metric in cls.metrics),
        splits=cls.splits,
        asks=cls.text_kind,
        needs=cls().what_it_needs,
        example={named.get(ours, ours): cell for ours, cell in row.items()},
        doc=doc,
    )


def benchmarks() -> list[BenchmarkInfo]:
    """All benchmarks, sorted by name."""
    from halludecode.evals.benchmarks.registry import BENCHMARKS

    return [benchmark_info(name) for name in BENCHMARKS.names()]
