"""A run of the command line in this process: exit code, standard output, standard error."""

from typing import NamedTuple

import pytest

import halludecode
from halludecode.cli import main
from halludecode.engines.api import Choice, Chunk, Output, Timings


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """``cli("list", "vcd")`` runs ``halludecode list vcd``."""

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


class FakeEngine:
    """Answers every request with fixed words and remembers what it was asked."""

    def __init__(self, model, engine, arguments, words=("a", " red", " cube")):
        self.model_id, self.engine, self.arguments, self.words = model, engine, arguments, words
        self.asked = []

    def output(self, strategy, n):
        choice = Choice("".join(self.words), (1, 2, 3), "stop")
        return Output(
            choices=(choice,) * n,
            strategy=strategy,
            effect=1,
            timings=Timings(0.0, 2.0, 3.0, 3),
            rows=("main", "noised"),
            warnings=("the strategy changed little",),
        )

    def generate(self, requests, strategy="greedy", sampling=None, *, score_words=()):
        self.asked += [(request, strategy, sampling) for request in requests]
        return [self.output(strategy, sampling.n) for _ in requests]

    def stream(self, request, strategy="greedy", sampling=None):
        self.asked.append((request, strategy, sampling))
        for number, word in enumerate(self.words):
            last = number == len(self.words) - 1
            yield Chunk(word, (number,), self.output(strategy, 1) if last else None)


@pytest.fixture
def engines(monkeypatch):
    """The fake engines that commands load, in order."""
    loaded = []

    def load(model, engine="hf", **arguments):
        loaded.append(FakeEngine(model, engine, arguments))
        return loaded[-1]

    monkeypatch.setattr(halludecode, "load", load, raising=False)
    return loaded
