"""What there is: every strategy with its paper, parameters, needs and cost."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from halludecode.core.paper import Paper
from halludecode.core.params import Param
from halludecode.core.registry import STRATEGIES


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
    doc: str


def info(name: str) -> Info:
    """Everything known of one strategy at its defaults; loads torch to trace what it needs."""
    from halludecode.core.plan import compile_plan, typical_model_info
    from halludecode.engines.api import engines_providing

    cls = STRATEGIES.get(name)
    plan = compile_plan(cls(), replace(typical_model_info(), artifact={}))
    module = inspect.getmodule(cls)
    doc = inspect.cleandoc((module and module.__doc__) or cls.__doc__ or "")
    return Info(
        name=name,
        summary=doc.splitlines()[0] if doc else "",
        paper=cls.paper,
        params=cls.params(),
        needs=tuple(sorted(plan.needs)),
        rows=plan.rows,
        cost=str(plan.cost),
        engines=engines_providing(plan.needs),
        off=dict(cls.off),
        doc=doc,
    )


def strategies() -> list[Info]:
    """All strategies, sorted by name."""
    return [info(name) for name in STRATEGIES.names()]
