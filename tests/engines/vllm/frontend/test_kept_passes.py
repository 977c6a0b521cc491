"""Passes that stay for later requests: bounded, and never given up while somebody needs one."""

from __future__ import annotations

from PIL import Image

import halludecode as hd
from halludecode.engines.vllm.frontend.kept_passes import KeptPasses, Pass
from tests.support.vllm import worker_of


def ran(*names: str) -> dict[tuple[int, str], Pass]:
    return {(0, name[0]): Pass(name, {}) for name in names}


def test_those_used_last_are_kept():
    passes = KeptPasses(2)
    assert passes.done((), ran("a1", "b1")) == ([], ["a1", "b1"])
    used = passes.use([(0, "a"), (0, "z"), (1, "a")])
    assert used == ran("a1")
    assert passes.done(used, ran("c1")) == (["b1"], ["c1"])
    assert set(passes.use([(0, "a"), (0, "b"), (0, "c")])) == {(0, "a"), (0, "c")}


def test_none_goes_while_somebody_needs_it():
    passes = KeptPasses(1)
    passes.done((), ran("a1"))
    used = passes.use([(0, "a")])
    assert passes.done((), ran("b1")) == (["b1"], [])
    assert passes.use([(0, "a")]) == used
    assert passes.done(used, {}) == ([], [])
    assert passes.done(used, ran("b2")) == (["a1"], ["b2"])


def test_one_that_two_ran_is_kept_once():
    passes = KeptPasses(4)
    passes.done((), ran("a1"))
    assert passes.done((), ran("a2")) == (["a2"], [])
    assert passes.use([(0, "a")]) == ran("a1")


def test_later_questions_look_at_the_tower_no_more(vllm_engine):
    engine = vllm_engine("testbed")
    state = worker_of(engine).model_runner.hd_state
    image = Image.new("RGB", (64, 64), (200, 31, 7))
    few = hd.Sampling(max_new_tokens=3)
    one, other = (hd.Request(words, [image]) for words in ("Is it red?", "What is in the image?"))
    (alone,) = engine.generate(other, "damro(beta=0)", few)
    stays = dict(state.staying)
    (first,) = engine.generate(one, "damro(beta=0)", few)
    (again,) = engine.generate(other, "damro(beta=0)", few)
    assert again.token_ids == alone.token_ids and first.rows == again.rows == ("main", "outliers")
    assert stays and state.staying == stays and not state.captured
