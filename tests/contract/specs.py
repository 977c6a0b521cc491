"""What the contract suite runs: every registered strategy, two compositions, every family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halludecode.core.registry import STRATEGIES

FAMILIES = ("llava", "qwen2_5_vl", "internvl")
# Parameters under which a strategy acts on a random model; without an entry, its defaults.
ACTIVE: dict[str, str] = {
    "m3id": "m3id(lam=0.5,gate=1)",
    "scaled": "scaled(scale=2.0)",
    "var": "var(dims=(3,40),tau=2.0,min_mass=0.05,rho=0.2)",
}
COMPOSED = ("var+vcd", "vhr+m3id")
TOLERANCE = 1e-4  # top-two gap below which equal tokens are not claimed (ruling 5)


@dataclass(frozen=True)
class Case:
    name: str
    spec: str


def active(name: str) -> str:
    return "+".join(ACTIVE.get(part, part) for part in name.split("+"))


def cases() -> list[Any]:
    names = [*STRATEGIES.names(), *COMPOSED]
    return [Case(name, active(name)) for name in names]


def off_spec(name: str) -> str:
    cls = STRATEGIES.get(name)
    values = ",".join(f"{key}={value!r}" for key, value in cls.off.items())
    base = ACTIVE.get(name, name)
    if not values:
        return base
    head, _, rest = base.partition("(")
    kept = [p for p in _split(rest.rstrip(")")) if p.split("=")[0] not in cls.off]
    return f"{head}({','.join([*kept, values])})"


def _split(text: str) -> list[str]:
    from halludecode.core.spec import split

    return [p for p in split(text, ",", text) if p] if text else []
