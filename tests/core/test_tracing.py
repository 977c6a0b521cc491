"""Tracing runs every hook once, so that what is wrong in one is a sentence before any token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from halludecode.core.branch import Branch, Edit
from halludecode.core.errors import IncompatibleStrategies, InvalidParameter, UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.registry import STRATEGIES
from halludecode.core.step import Step
from halludecode.core.strategy import Strategy
from halludecode.views.masks import blackout

MODEL_INFO = typical_model_info()


class Rows(Strategy):
    """Two extra rows, one of them gone after the first token."""

    name = "rows"

    def branches(self, prompt, state, m):
        blind = prompt.without_images()
        return {"noised": Branch(prompt), "blind": Branch(blind, life="prefill")}


def test_a_misspelt_row_is_a_sentence_before_any_token():
    class Misspelt(Rows):
        def combine(self, step):
            return step["main"] - step["noisd"]

    with pytest.raises(UnsupportedStrategy, match=r"rows.combine reads row 'noisd'.*main, noised"):
        compile_plan(Misspelt(), MODEL_INFO)


def test_a_row_that_lives_until_the_first_token_is_missed_at_the_second():
    class Late(Rows):
        def combine(self, step):
            return step["main"] - step["blind"]

    with pytest.raises(UnsupportedStrategy, match=r"reads row 'blind'.*gone after the first"):
        compile_plan(Late(), MODEL_INFO)


def test_while_answers_are_written_a_missing_row_is_the_same_sentence():
    step = Step({"main": torch.zeros(1, 3)}, torch.ones(1, 1), owner="vcd")
    with pytest.raises(UnsupportedStrategy, match=r"vcd.combine reads row 'noised'.*it has main"):
        step["noised"]


@pytest.mark.parametrize(
    ("scores", "gave"),
    [
        (lambda step: step["main"][:, :-1], r"shape \[2, 15\]"),
        (lambda step: step["main"][0], r"shape \[16\]"),
        (lambda step: None, "NoneType"),
    ],
)
def test_scores_of_another_shape_are_a_sentence(scores, gave):
    class Wrong(Rows):
        def combine(self, step):
            return scores(step)

    with pytest.raises(InvalidParameter, match=rf"rows.combine gave {gave} for 2 requests of 16"):
        compile_plan(Wrong(), MODEL_INFO)


@pytest.mark.parametrize(
    ("hook", "given", "said"),
    [
        ("branches", None, "rows.branches gave NoneType; it must give names and their Branch"),
        ("branches", {"noised": 3}, "rows.branches gave int"),
        ("activations", None, "rows.activations gave NoneType; .* their ActivationRequest"),
        ("activations", {"early": 3}, "rows.activations gave int"),
        ("steer", None, "rows.steer gave NoneType for a stream of"),
    ],
)
def test_what_a_hook_should_not_give_is_a_sentence(hook, given, said):
    body = {hook: lambda self, *_: given, "combine": lambda self, step: step["main"]}
    with pytest.raises(InvalidParameter, match=said):
        compile_plan(type("Wrong", (Rows,), body)(), MODEL_INFO)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_tracing_draws_none_of_the_callers_random_numbers(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for artifact in (None, {}):
        part = STRATEGIES.get(name)()
        needy = part.artifact == "required" and artifact is None
        compile_plan(part, replace(MODEL_INFO, artifact={} if needy else artifact))
    assert torch.equal(torch.rand(3), expected)


class Blackened(Strategy):
    """The main row with its picture blacked out."""

    name = "blackened"

    def branches(self, prompt, state, m):
        return {"main": Branch(prompt, images=Edit(blackout, (("drop", 0.5),)))}


class Reworded(Strategy):
    """The main row under other words."""

    name = "reworded"

    def branches(self, prompt, state, m):
        return {"main": Branch(prompt.map_question(str.upper))}


def test_strategies_that_would_undo_one_another_are_refused():
    assert len(compile_plan((Reworded(), Reworded()), MODEL_INFO).parts) == 2
    for pair in ((Blackened(), Reworded()), (Blackened(), Blackened())):
        with pytest.raises(IncompatibleStrategies, match="edit the main row, and only one can"):
            compile_plan(pair, MODEL_INFO)
    with pytest.raises(IncompatibleStrategies, match=r"a search over beams \(opera\) cannot"):
        compile_plan("vcd+opera", MODEL_INFO)
