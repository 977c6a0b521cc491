"""Any two strategies compose: in either order, with equal rows shared, and the cost foretold."""

from __future__ import annotations

from itertools import combinations

import pytest

import halludecode as hd
from halludecode.core.errors import IncompatibleStrategies
from halludecode.core.registry import STRATEGIES
from tests.contract.test_contract import same
from tests.support import families, specs

NAMES = [name for name in STRATEGIES.names() if name != "greedy"]
# One pair of every two kinds; the others are left to `make test-all`.
QUICK = {
    ("damro", "vista"),
    ("dola", "var"),
    ("lacing", "vcd"),
    ("m3id", "pai"),
    ("pai", "var"),
    ("ritual", "vcd"),
    ("sid", "vhr"),
    ("vdgd", "vista"),
    ("vhr", "zerotuning"),
}
PAIRS = [
    pytest.param(*pair, id="+".join(pair), marks=() if pair in QUICK else pytest.mark.full)
    for pair in combinations(NAMES, 2)
]
SHORT = hd.Sampling(max_new_tokens=3, min_new_tokens=3, logprobs=2)


@pytest.fixture(scope="module")
def llava(family_engine, tmp_path_factory):
    return specs.supplied(family_engine("llava"), tmp_path_factory.getbasetemp() / "artifacts")


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_any_two_compose(llava, one, two):
    asked = [hd.Request("Describe it.", [p]) for p in families.pictures()[:2]]
    there, back = specs.active(f"{one}+{two}"), specs.active(f"{two}+{one}")
    if "opera" in (one, two):
        with pytest.raises(IncompatibleStrategies, match="cannot be composed"):
            llava.generate(asked, there, SHORT)
        return
    plan = llava.plan(there)
    llava.generate(asked, plan, SHORT)  # descriptions and other passes are remembered
    forwards: list[int] = []
    hook = llava.model.register_forward_hook(
        lambda m, a, o: forwards.append(o.logits.shape[:-1].numel())
    )
    try:
        made = llava.generate(asked, plan, SHORT)
    finally:
        hook.remove()
    first, *later = forwards
    if plan.can_wait:  # random weights decide nothing, so the other rows begin at the first token
        first += later.pop(0)
    assert later == [len(asked) * plan.cost.rows] * 2, "one forward a token, as foretold"
    assert first == len(asked) * (plan.cost.rows + plan.cost.prefill_rows)
    swapped = llava.generate(asked, back, SHORT)
    assert all(same(a, b) for a, b in zip(made, swapped, strict=True))


def test_rows_that_are_equal_are_computed_once(llava):
    for spec, rows in (("m3id+pai", 2), ("vcd+vcd(alpha=0.5)", 2), ("m3id+vcd", 3)):
        assert llava.plan(spec).cost.rows == rows
