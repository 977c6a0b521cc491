"""What the contract suite runs: every registered strategy, two compositions, every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halludecode.calibration.store import ArtifactStore
from halludecode.core.artifact import Artifact, shaping
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.registry import STRATEGIES
from halludecode.models import families as models
from tests.support import detectors, families

FAMILIES = tuple(families.FAMILIES)
# One strategy for each way to act: on these `make test` runs every family (see conftest.py).
REPRESENTATIVES = ("agla", "damro", "var", "vcd", "vhr", "vista")
# Of families whose row is much like another's, half of these: the tower, attention, a row.
ALIKE = FAMILIES[FAMILIES.index("vipllava") :]
FEWER = ("damro", "var", "vcd")
# Of these, the ones whose row no other family's tests say anything about; `make test` leaves the
# rest to `make test-all`.
UNLIKE = ("mistral3", "qwen3_vl_moe", "paligemma", "lfm2_vl", "qwen3_5", "gemma4")
RARE = frozenset(ALIKE) - frozenset(UNLIKE)
# Parameters under which a strategy acts on a random model; without an entry, its defaults.
ACTIVE: dict[str, str] = {
    "act": "act(alpha=1.5)",
    "adhh": "adhh(heads=(0,0,1,1,2,0,2,1),tau=0.05)",
    "code": "code(tokens=5)",
    "halc": f"halc(tokens=6,objects=all,detector={detectors.DINO},matcher={detectors.SIGLIP})",
    "ilvad": "ilvad(tau=1.0)",
    "m3id": "m3id(lam=0.5,gate=1)",
    "marine": f"marine(detector={detectors.DETR},threshold=0.3)",
    "memvr": "memvr(ratio=1.0)",
    "scaled": "scaled(scale=2.0)",
    "spin": "spin(r=0.5)",
    "var": "var(dims=(3,13,40),tau=2.0,min_mass=0.05,rho=0.2)",
    "vdgd": "vdgd(tokens=5)",
    "vicrop": "vicrop(base=24)",
    "zoom": "zoom(cue=cup,smallest=24,upper=1,lower=-1)",
}
COMPOSED = ("var+vcd", "vhr+m3id")
TOLERANCE = 1e-4  # top-two gap below which equal tokens are not claimed


@dataclass(frozen=True)
class Case:
    name: str
    spec: str


def active(name: str) -> str:
    return "+".join(ACTIVE.get(part, part) for part in name.split("+"))


def cases() -> list[Any]:
    names = [*STRATEGIES.names(), *COMPOSED]
    return [Case(name, active(name)) for name in names]


def refused(family: str, name: str) -> str:
    """Why a family cannot serve a strategy or composition; "" if it can."""
    m, recurrent = replace(typical_model_info(), artifact={}), families.FAMILIES[family].recurrent
    if recurrent:
        try:
            compile_plan(active(name), replace(m, num_layers=families.LAYERS, recurrent=recurrent))
        except UnsupportedStrategy as error:
            return "needs " + str(error).partition(" needs ")[2].partition(", in layer")[0]
    plan = compile_plan(active(name), m)
    lacks = models.FAMILIES[family].lacks
    return next((lacks[need] for need in sorted(plan.needs) if need in lacks), "")


def refusals() -> list[tuple[str, str]]:
    names = [case.name for case in cases()]
    return [(family, name) for family in FAMILIES for name in names if refused(family, name)]


def supplied(engine: Any, folder: Path) -> Any:
    """The engine with hand-made artifacts for the strategies that need one, and detectors."""
    detectors.save_detr(), detectors.save_grounding_dino(), detectors.save_siglip()
    m, rng = engine.model_info, torch.Generator().manual_seed(0)
    made = {
        "act": {"gain": torch.rand(m.num_layers, m.num_heads, generator=rng) - 0.3},
        "lacing": {"soft": torch.randn(7, m.hidden_size, generator=rng)},
        "adaiat": {
            "real": torch.rand(m.num_layers, m.num_heads, generator=rng) + 0.4,
            "hallucinated": torch.rand(m.num_layers, m.num_heads, generator=rng) + 0.4,
        },
        "vti": {
            "text": torch.randn(m.num_layers, m.hidden_size, generator=rng),
            "vision": torch.randn(*tower_shape(engine), generator=rng),
        },
        "zerotuning": {
            "heads": torch.rand(m.num_layers, m.num_heads, generator=rng) < 0.5,
            "gamma": torch.tensor(6.0),
        },
    }
    engine.calibrator.store = ArtifactStore(folder)
    for name, tensors in made.items():
        parameters = shaping(STRATEGIES.get(name)())
        engine.calibrator.store.save(Artifact(name, parameters, engine.digest, tensors))
    return engine


def tower_shape(engine: Any) -> tuple[int, int, int]:
    """Layers that are read, places of a view and width of the vision tower."""
    vision, config = engine.model_info.vision, engine.config.vision_config
    width = getattr(config, "embed_dim", None) or config.hidden_size
    return vision.read_layers, max(vision.places, 1), width


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
