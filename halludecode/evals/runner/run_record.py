"""What a run was, for ``run.json``, and whether an earlier run's answers belong to this one."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode import __version__
from halludecode.core.errors import InvalidData
from halludecode.evals.data.run_files import Key

if TYPE_CHECKING:
    from halludecode.evals.benchmarks.base import Benchmark
    from halludecode.evals.runner.batching import Setup


def recipe(setup: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all answers of the folder share, and the rest of ``run.json``."""
    described = dict(setup.engine.describe())
    identity = {
        "model": setup.model,
        "model_digest": described.pop("model_digest", None),
        "engine": described.pop("engine", setup.engine.name),
        "dtype": described.pop("dtype", None),
        "seed": setup.seed,
        "prompts": {
            task: {"preset": name, "template": preset.template(setup.benchmarks[task].wording)}
            for task, (name, preset) in setup.presets.items()
        },
        "sampling": {
            task: {"max_new_tokens": s.max_new_tokens, "temperature": s.temperature}
            for task, s in setup.sampling.items()
        },
        "answers": setup.answers,
        **({"shard": "{}/{}".format(*setup.shard)} if setup.shard else {}),
        **recipes(setup.benchmarks),
    }
    data = {
        "/".join(part for part in unit.key if part): {
            "digest": unit.digest,
            "samples": len(unit.samples),
            "revision": unit.revision,
            **({"oddities": dict(unit.oddities)} if unit.oddities else {}),
        }
        for unit in setup.units
    }
    rest = {
        "strategies": {
            plan.canonical: {"spec": spec, **plan.describe(), **_controls(setup, plan)}
            for spec, plan in setup.plans.items()
        },
        "data": data,
        "limit": dict.fromkeys(setup.presets, setup.limit),
        **{k: v for benchmark in setup.benchmarks.values() for k, v in benchmark.record().items()},
        "hardware": _hardware(str(described.pop("device", "cpu"))),
        "versions": {**versions(), **described.pop("versions", {})},
        "model_facts": described,
        **({"calls": {call_name(setup.call): dict(setup.call)}} if setup.call else {}),
        **({"load": dict(setup.load)} if setup.load else {}),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return identity, rest


def call_name(call: Mapping[str, Any]) -> str:
    """What tells calls that share a folder apart: their tasks, strategies and data."""
    return "; ".join(",".join(map(str, call[what])) for what in ("tasks", "strategies", "data"))


def recipes(benchmarks: Mapping[str, Benchmark]) -> dict[str, dict[str, Any]]:
    """What is recorded of benchmarks under their names; nothing of those without parameters."""
    found = {name: benchmarks[name].recipe() for name in sorted(benchmarks)}
    return {name: recipe for name, recipe in found.items() if recipe}


def _controls(setup: Setup, plan: Any) -> dict[str, Any]:
    facts = setup.controls.get(plan.canonical)
    return {"controls": facts} if facts else {}


def _hardware(device: str) -> dict[str, Any]:
    name = None
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(device)
    return {
        "device": device,
        "gpu": name,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Versions of what a run's numbers hang on."""
    return {
        "halludecode": __version__,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
    }


def check_data(setup: Setup, path: Path, done: Mapping[Key, Mapping[str, Any]]) -> None:
    """An earlier call's answers must be to the very same questions, under whatever strategy.

    Questions that were not answered may have changed: a picture may have been mended.

    Args:
        setup: This call's questions.
        path: The run folder.
        done: Its answers.

    Raises:
        InvalidData: A question, its picture or its truth is not what was answered.
    """
    digests = {
        (*unit.key, sample.id): sample.digest for unit in setup.units for sample in unit.samples
    }
    for (task, data, split, strategy, i), line in done.items():
        if digests.get((task, data, split, i), line["data_hash"]) != line["data_hash"]:
            raise InvalidData(
                f"{path}: sample {i} of {task} on {data} was answered for other data (by "
                f"{strategy}); choose another output folder or start over with --fresh."
            )
