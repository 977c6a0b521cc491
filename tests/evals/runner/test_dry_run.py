"""The forecast's arithmetic, against a run whose cost is known to the last operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from halludecode.engines.api import Output, Request
from halludecode.evals.runner import dry_run as forecast
from halludecode.evals.runner.dry_run import dry_run, probe_size, spread
from halludecode.evals.runner.run import run_eval
from tests.support import eval_world as world

TASKS = ["pope", "chair"]


@dataclass
class PricedEngine(world.FakeEngine):
    """Its clock runs by what it is asked.

    Args:
        forward: Seconds of every forward batch.
        each: Seconds of every request.
        picture: Seconds of a picture that is new to a call.
        decode: Seconds of a picture that it never saw.
        question: Seconds of a question that is new to the strategy.
        word: Seconds of every forward batch per word of its longest answer.
        compile: Seconds of a strategy's first call.
    """

    forward: float = 0.0
    each: float = 0.0
    picture: float = 0.0
    question: float = 0.0
    word: float = 0.0
    decode: float = 0.0
    compile: float = 0.0
    spent: float = 0.0
    shown: set[bytes] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)

    def clock(self) -> float:
        return self.spent

    def generate(self, requests: Sequence[Request], strategy: str = "greedy", *a: Any, **k: Any):
        made: list[Output] = super().generate(requests, strategy, *a, **k)
        if strategy not in {name for name, _ in self.told}:
            self.spent += self.compile
        pixels = {r.images[0].tobytes() for r in requests if r.images}
        self.spent += self.picture * len(pixels) + self.decode * len(pixels - self.shown)
        self.shown |= pixels
        new = {(strategy, r.prompt) for r in requests} - self.told
        self.spent += self.question * len(new) * (strategy != "greedy")
        self.told |= new
        for at in range(0, len(requests), self.batch_size):
            chunk = made[at : at + self.batch_size]
            longest = max(len(output.text.split()) for output in chunk)
            self.spent += self.forward + self.word * longest + self.each * len(chunk)
        return made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return world.folder(tmp_path_factory.mktemp("data"), pictures=90)


def both(tmp_path, source, make: Callable[[], PricedEngine], **more) -> tuple[dict, float]:
    """What was foretold, and what a run then took."""
    options = {
        "tasks": TASKS,
        "strategies": ["greedy", "vista"],
        "data": [source],
        "prompt_preset": "opera",
        **more,
    }
    asked, ran = make(), make()
    told = dry_run(asked, clock=asked.clock, **options)
    run_eval(ran, output=tmp_path / "run", progress=False, **options)
    return told, ran.spent


@pytest.mark.parametrize(
    "price",
    [
        {"each": 1.0},
        {"forward": 1.0},
        {"picture": 1.0},
        {"word": 0.1},
        {"decode": 1.0, "each": 0.1},
        {"question": 1.0, "each": 0.1},
        {"forward": 2.0, "each": 0.3, "picture": 1.0, "question": 0.5, "word": 0.05},
    ],
)
def test_each_kind_of_cost_is_foretold(tmp_path, source, price):
    told, spent = both(tmp_path, source, lambda: PricedEngine(**price))
    assert told["total_seconds"] == pytest.approx(spent, rel=0.12)


def test_small_forward_batches_that_are_left_over_count(tmp_path, source):
    """20 captions are batches of 16 and 4: two forwards, not 1.25."""
    told, spent = both(
        tmp_path, source, lambda: PricedEngine(forward=1.0), tasks=["chair"], limit=20
    )
    assert spent == 4.0
    assert told["total_seconds"] == pytest.approx(4.0)


def test_the_first_call_of_a_strategy_is_not_extrapolated(tmp_path, source):
    told, spent = both(tmp_path, source, lambda: PricedEngine(each=1.0, compile=50.0))
    assert told["total_seconds"] == pytest.approx(spent - 100.0, rel=0.01)


def test_a_probe_is_a_small_part_of_a_run_and_says_so(source):
    engine = PricedEngine(each=1.0)
    told = dry_run(
        engine, clock=engine.clock, tasks=TASKS, strategies=["greedy"], data=[source],
        prompt_preset="opera",
    )  # fmt: skip
    probed, requests = told["greedy"]["probed"], told["greedy"]["requests"]
    assert 16 <= probed <= 0.15 * requests
    assert probed < sum(engine.calls) <= 0.3 * requests
    assert f"{probed} of the run's own requests" in told["note"]
    assert max(engine.calls) <= 2 * engine.batch_size


def test_every_strategy_is_asked_about_the_same_pictures(source):
    engine = PricedEngine(each=1.0)
    dry_run(engine, tasks=TASKS, strategies=["greedy", "vcd"], data=[source], prompt_preset="opera")
    seen = {
        name: [(prompt, pixels) for strategy, prompt, pixels in engine.asked if name in strategy]
        for name in ("greedy", "vcd")
    }
    assert seen["greedy"] == seen["vcd"]


def test_a_handful_of_requests_is_asked_whole(source):
    engine = PricedEngine(each=1.0)
    told = dry_run(
        engine, clock=engine.clock, tasks=["chair"], strategies=["greedy"], data=[source],
        prompt_preset="opera", limit=3,
    )  # fmt: skip
    assert told["greedy"]["seconds"] == 3.0


def test_probe_size_follows_the_forward_batches():
    assert probe_size([64] * 10, 16) == 32, "two full forwards of 40"
    assert probe_size([66] * 10, 16) == 26, "66 requests are five forwards"
    assert probe_size([5], 16) == 5
    assert probe_size([20], 16) == 10, "16 and 4"
    assert probe_size([64] * 100, 16) == round(0.05 * 6400)


def test_pictures_come_from_all_over_a_job():
    pictures = [[f"ask {n}"] for n in range(100)]
    first, second = spread(pictures, 2)
    assert [*first, *second] == [["ask 12"], ["ask 62"], ["ask 37"], ["ask 87"]]
    assert spread(pictures[:3], 2) == (pictures[:2], [])
    assert spread(pictures[:1], 1) == (pictures[:1], [])


def test_times_are_told_in_plain_units():
    told = [forecast._duration(seconds) for seconds in (12.3, 600, 7200)]
    assert told == ["12 s", "10 min", "2.0 h"]
