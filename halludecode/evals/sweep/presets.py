"""The best setting as files: a recipe for `eval --config`, presets as in ``configs/strategies``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halludecode.core.spec import parse, to_config
from halludecode.evals.results.build import BASELINE


def write_presets(
    folder: Path,
    found: Mapping[str, Any],
    run: Mapping[str, Any],
    tasks: Sequence[Any],
    data: Sequence[str],
    share: float | None,
) -> None:
    """Write ``best.yaml`` and ``presets/STRATEGY.yaml``.

    Args:
        folder: The sweep's.
        found: The content of ``sweep.json``.
        run: The content of the test run's ``run.json``.
        tasks: Benchmarks, as they were asked for.
        data: Sources that were reported on.
        share: Share of the pictures that was chosen on, where one source was split.
    """
    import yaml

    best = found["best"]
    value = ", ".join(f"{v['value']:.4f} on {source}" for source, v in best["dev"].items())
    chosen = f"best of {found['tried']} by {found['task']} {found['metric']}: {value}"
    options = {
        "model": run["model"],
        "tasks": list(tasks),
        "strategies": [BASELINE, *to_config(parse(best["strategy"]))]
        if len(parse(best["strategy"])) == 1
        else [BASELINE, best["strategy"]],
        "data": list(data),
        "seed": run["seed"],
    }
    limits = {limit for limit in run["limit"].values() if limit is not None}
    options |= {"limit": limits.pop()} if limits else {}
    split = "" if share is None else f"# {share:g} of the pictures in data were chosen on.\n"
    head = f"# halludecode eval --config {folder / 'best.yaml'} --output DIR\n# {chosen}\n{split}"
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    (folder / "best.yaml").write_text(head + text, encoding="utf-8")
    name = _preset_name(str(run["model"]), found)
    (folder / "presets").mkdir(exist_ok=True)
    for part in to_config(parse(best["strategy"])):
        ((strategy, values),) = part.items()
        preset = {key: {"value": v, "source": chosen} for key, v in values.items()}
        text = yaml.safe_dump({name: preset}, sort_keys=False, allow_unicode=True)
        (folder / "presets" / f"{strategy}.yaml").write_text(text, encoding="utf-8")


def _preset_name(model: str, found: Mapping[str, Any]) -> str:
    """Model and task in the letters that ``strategy@NAME`` takes."""
    words = f"{Path(model).name}-{found['task']}".lower()
    return "".join(c if c.isalnum() or c in "_.-" else "-" for c in words)
