"""A fake engine and a small data folder: deterministic and quick."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from halludecode.core.errors import InvalidRequest, UnknownStrategy
from halludecode.engines.api import Choice, Engine, Output, Request, Sampling, Timings
from halludecode.evals.benchmarks.registry import choose
from halludecode.evals.data.entries import Selection
from halludecode.evals.presets import PRESETS

OBJECTS = ("dog", "cat", "car", "bus", "cup", "chair")
IDS = {"dog": 18, "cat": 17, "car": 3, "bus": 6, "cup": 47, "chair": 62}


@dataclass(frozen=True)
class FakePlan:
    canonical: str
    rows: tuple[str, ...] = ("main",)
    cost: str = "1 row"
    parts: tuple[Any, ...] = ()

    def describe(self) -> dict[str, Any]:
        return {"canonical": self.canonical, "rows": list(self.rows)}


@dataclass
class FakeEngine(Engine):
    """Answers are a function of strategy, prompt and pixels alone.

    Args:
        model_id: Its name.
        refuse: Prompts that raise InvalidRequest, as an engine does for a prompt that is too long.
        stop_after: Calls after which KeyboardInterrupt is raised; None never.

    ``calls`` and ``asked`` list what it was asked, ``tokens`` with what budgets.
    """

    model_id: str = "fake"
    refuse: str | None = None
    stop_after: int | None = None
    digest: str = "0123"
    name: str = "hf"
    batch_size: int = 16
    provides: frozenset[str] = frozenset()
    calls: list[int] = field(default_factory=list)
    tokens: set[tuple[str, int]] = field(default_factory=set)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)

    def plan(self, spec: str) -> FakePlan:
        if spec == "vdc":
            raise UnknownStrategy("'vdc'. Did you mean 'vcd'?")
        return FakePlan("greedy" if spec == "greedy" else f"{spec}(alpha=1.0)")

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.model_id,
            "model_digest": self.digest,
            "engine": "hf",
            "dtype": "float32",
            "device": "cpu",
            "versions": {"torch": "0"},
        }

    def generate(
        self,
        requests: Sequence[Request],
        strategy: str = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[Output]:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(requests))
        self.tokens |= {(r.prompt, sampling.max_new_tokens) for r in requests if sampling}
        if any(self.refuse and self.refuse in r.prompt for r in requests):
            raise InvalidRequest(f"The prompt holds {self.refuse!r}.")
        return [self._one(r, strategy, bool(score_words)) for r in requests]

    def _one(self, request: Request, strategy: str, scored: bool) -> Output:
        pixels = b"".join(image.tobytes() for image in request.images)
        self.asked.append((strategy, request.prompt, hashlib.sha256(pixels).digest()))
        noise = hashlib.sha256(f"{strategy}|{request.prompt}|".encode() + pixels).digest()
        if scored:
            text = "Yes" if noise[0] % 2 else "No"
        else:
            said = [OBJECTS[b % len(OBJECTS)] for b in noise[:3]]
            text = f"The image shows a {said[0]} and a {said[1]}. There is a {said[2]}."
        scores = {"yes": noise[1] / 8, "no": noise[2] / 8} if scored else {}
        tokens = tuple(range(len(text.split())))
        timings = Timings(0.0, 1.0, 2.0 + noise[3] / 100, len(tokens))
        choice = Choice(text, tokens, "stop")
        return Output((choice,), strategy, 0, timings, ("main",), scores)


def select(*tasks: str, **more: Any) -> Selection:
    """These benchmarks, with their parameters, under OPERA's prompts."""
    chosen = choose(list(tasks))
    return Selection(chosen, dict.fromkeys((b.name for b in chosen), PRESETS["opera"]), **more)


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (40 * number % 256, 90, 7 * number % 256)).save(path)


def folder(root: Path, pictures: int = 4) -> Path:
    """A data folder in the documented layout: two POPE splits, captions, two MME subtasks."""
    names = [f"pic_{n}.png" for n in range(pictures)]
    truth = {name: [OBJECTS[n % 6], OBJECTS[(n + 1) % 6]] for n, name in enumerate(names)}
    for n, name in enumerate(names):
        picture(root / "images" / name, n)
    for split, shift in (("random", 3), ("adversarial", 4)):
        asked = []
        for n, name in enumerate(names):
            absent = OBJECTS[(n + shift) % 6]
            for thing, label in ((truth[name][0], "yes"), (absent, "no")):
                text = f"Is there a {thing} in the image?"
                number = len(asked) + 1
                asked.append({"question_id": number, "image": name, "text": text, "label": label})
        write_lines(root / "pope" / f"{split}.jsonl", asked)
    instances = {
        "images": [{"id": n + 10, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n + 10, "category_id": IDS[thing]}
            for n, name in enumerate(names)
            for k, thing in enumerate(truth[name])
        ],
        "categories": [{"id": i, "name": name} for name, i in IDS.items()],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances.json").write_text(json.dumps(instances))
    for subtask in ("existence", "color"):
        rows = []
        for n, name in enumerate(names[:3]):
            picture(root / "mme" / subtask / name, n)
            rows += [
                f"{name}\tIs it {subtask} one? Please answer yes or no.\tYes",
                f"{name}\tIs it {subtask} two? Please answer yes or no.\tNo",
            ]
        (root / "mme" / subtask / f"{subtask}.txt").write_text("\n".join(rows) + "\n")
    return root


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Results without the times, which a resumed run need not reproduce."""
    drop = ("seconds", "tokens_per_second")
    runs = [{k: v for k, v in entry.items() if k not in drop} for entry in results["runs"]]
    return {**results, "runs": runs}
