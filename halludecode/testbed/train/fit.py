"""The loop both stages run in: resumes, notes its curve, saves now and then."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

NOTE, SAVE, JUDGE = 25, 100, 500  # steps between lines of the curve, savings, figures


class Stage(Protocol):
    """What `fit` asks of a stage."""

    name: str
    steps: int
    net: torch.nn.Module
    trainer: Any

    def step(self, number: int) -> dict[str, float]:
        """One update; gives what belongs into the curve."""
        ...

    def figures(self) -> dict[str, float]:
        """Measures the stage on pictures it does not train on."""
        ...


def fit(stage: Stage, folder: Path, report: Callable[[int, str], None]) -> dict[str, float]:
    """Runs a stage to its end, from where an earlier run stopped.

    Args:
        stage: What is trained.
        folder: Keeps `NAME.pt` and the curve `NAME.csv`, with the processor's seconds so far.
        report: Called with the number of steps done since the last call, and a few words.

    Returns:
        The figures at the end.
    """
    saved = folder / f"{stage.name}.pt"
    curve: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        first, curve = state["step"], state["curve"]
        spent = curve[-1]["seconds"] if curve else 0.0
        stage.net.load_state_dict(state["net"])
        stage.trainer.restore(state["trainer"])
        report(first, "resumed")
    stage.net.train()
    steps: list[dict[str, float]] = []
    figures: dict[str, float] = {}
    start = time.process_time() - spent
    for number in range(first, stage.steps):
        steps.append(stage.step(number))
        done = number + 1
        if done % NOTE == 0 or done == stage.steps:
            means = {key: sum(x[key] for x in steps) / len(steps) for key in steps[0]}
            curve.append({"step": done, "seconds": round(time.process_time() - start), **means})
            if done % JUDGE == 0 or done == stage.steps:
                figures = _judged(stage)
                curve[-1] |= figures
            report(len(steps), _words(curve[-1]))
            steps = []
        if done % SAVE == 0 or done == stage.steps:
            _save(stage, saved, done, curve)
            _write(folder / f"{stage.name}.csv", curve)
    return figures or _judged(stage)  # a stage found finished took no step


def _judged(stage: Stage) -> dict[str, float]:
    stage.net.eval()
    figures = stage.figures()
    stage.net.train()
    return figures


def _words(line: dict[str, float]) -> str:
    shown = {key: value for key, value in line.items() if key not in ("step", "seconds")}
    return ", ".join(f"{key} {value:.3f}" for key, value in shown.items())


def _save(stage: Stage, path: Path, step: int, curve: list[dict[str, float]]) -> None:
    """Writes beside and renames, so that a kill leaves the old one."""
    state = {
        "step": step,
        "curve": curve,
        "net": stage.net.state_dict(),
        "trainer": stage.trainer.state(),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _write(path: Path, curve: list[dict[str, float]]) -> None:
    keys = list(dict.fromkeys(key for line in curve for key in line))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(curve)
