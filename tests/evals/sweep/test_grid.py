import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.errors import InvalidParameter, UnknownStrategy
from halludecode.core.spec import format as canonical
from halludecode.core.spec import parse
from halludecode.evals.sweep.grid import settings


def values(*specs):
    return [setting.values for setting in settings(specs)]


def test_braces_are_all_their_combinations():
    found = settings(["vcd(alpha={0.1..2:3}, beta={0.05,0.2})"])
    assert [s.spec for s in found] == [
        f"vcd(alpha={alpha}, beta={beta})" for alpha in ("0.1", "1.05", "2") for beta in (0.05, 0.2)
    ]
    assert found[0].values == {"alpha": 0.1, "beta": 0.05}
    assert found[0].strategy == canonical(parse("vcd(alpha=0.1,beta=0.05)"))


def test_whole_numbers_words_and_compositions():
    assert values("vcd(noise_step={3..5})") == [{"noise_step": n} for n in (3, 4, 5)]
    assert values("var(tau={20,30})+vcd(alpha={1,2})")[-1] == {"var.tau": 30, "vcd.alpha": 2}
    first = settings(["vcd(alpha=1)+m3id(gate={0.1,0.2})"])[0]
    assert first.spec == "vcd(alpha=1)+m3id(gate=0.1)"
    assert values("greedy", "vcd(alpha={1,1.0,2})", "vcd(alpha={2,3})") == [
        {},
        {"alpha": 1},
        {"alpha": 2},
        {"alpha": 3},
    ]


@given(st.floats(1, 50), st.floats(0.01, 50), st.integers(2, 30))
def test_a_range_begins_and_ends_where_it_says(first, width, count):
    last = first + width
    found = [each["scale"] for each in values(f"scaled(scale={{{first}..{last}:{count}}})")]
    assert found == sorted(found) and 1 <= len(found) <= count
    assert found[0] == pytest.approx(first, rel=1e-3)
    assert found[-1] == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("vcd(alpha={a..b:3})", "'a' is no number"),
        ("vcd(alpha={1..inf:3})", "'inf' is no number"),
        ("vcd(alpha={})", "empty value"),
        ("vcd(alpha={1,,2})", "empty value"),
        ("vcd(alpha={2..1:3})", "goes down"),
        ("vcd(alpha={0.5..2})", r"write \{0.5..2:10\}"),
        ("vcd(alpha={1..2:1})", "count must be a whole number, 2 to"),
        ("vcd(alpha={1..2:2.5})", "count must be a whole number"),
        ("vcd(alpha={0..10000})", "more than 1000 values"),
        ("vcd(alpha={1..2:900},beta={0.1,0.2})", "1800 settings; a sweep takes 1000"),
        ("vcd(alpha={-1,2})", "alpha must be >= 0"),
        ("vcd(alpah={1,2})", "no parameter 'alpah'"),
        ("vcd(alpha={1,2)", "do not match"),
    ],
)
def test_what_does_not_fit_is_one_sentence(spec, says):
    with pytest.raises(InvalidParameter, match=says):
        settings([spec])


def test_a_misspelt_strategy_is_named():
    with pytest.raises(UnknownStrategy, match="vdc"):
        settings(["vdc(alpha={1,2})"])
