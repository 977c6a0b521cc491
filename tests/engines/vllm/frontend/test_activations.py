"""Passes that depend on earlier ones are asked for until a strategy has no new ones."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.plan import typical_model_info
from halludecode.core.prompt import Prompt, Turn
from halludecode.core.strategy import Strategy
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.frontend.activations import ActivationPasses, Pass

WORDS = ("one", "two", "two", "three", "one", "four")  # some are asked again under new names


def request(word: str) -> ActivationRequest:
    return ActivationRequest(Prompt((Turn("user", (word,)),)))


class InTurn(Strategy):
    """Asks about one word after another."""

    name = "in_turn"

    def next_activations(self, prompt, activations, m):
        asked = len(activations)
        return {str(asked): request(WORDS[asked])} if asked < len(WORDS) else {}


class Taken(ActivationPasses):
    """Passes that are written down in place of being run."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    @contextmanager
    def _taken(self, requests):
        self.runs += [each.prompt.question for each in requests.values()]
        yield {key: Pass(each.prompt.question, {}) for key, each in requests.items()}

    def _read(self, ran, at):
        return Activations(text=ran.name)


def test_a_pass_asked_for_under_two_names_is_run_once_and_ends_nothing():
    first = {"0": request(WORDS[0])}
    part = TracedStrategy(InTurn(), typical_model_info(), activations=first)
    taken, by_prompt = Taken(), [[dict(first)]]
    with ExitStack() as running:
        passes = taken._take_all(running, [request("?").prompt], [part], [0], by_prompt)
    assert [ran.name for ran in passes.values()] == taken.runs
    assert [each.prompt.question for each in by_prompt[0][0].values()] == list(WORDS)
    assert taken.runs == ["one", "two", "three", "four"]
