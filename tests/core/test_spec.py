"""The spec grammar: round trips, hints, bounds; fuzzed."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core import spec as hd_spec
from halludecode.core.errors import HalluDecodeError, InvalidParameter, UnknownStrategy
from halludecode.core.registry import STRATEGIES
from halludecode.core.strategy import Strategy, strategy

floats = st.floats(0, 4, allow_nan=False)


@given(floats, st.floats(0, 1), st.integers(0, 999), st.floats(0, 2), st.none() | st.floats(0, 9))
def test_canonical_strings_round_trip(alpha, beta, step, lam, cap):
    parts = (
        hd_spec.get("vcd", alpha=alpha, beta=beta, noise_step=step),
        hd_spec.get("m3id", lam=lam, cap=cap),
        hd_spec.get("var", dims=(step, 7)),
    )
    text = hd_spec.format(parts)
    assert hd_spec.parse(text) == parts
    assert hd_spec.format(hd_spec.parse(text)) == text
    assert hd_spec.parse(hd_spec.to_config(parts)) == parts


@given(st.text(alphabet=string.printable, max_size=40))
def test_text_parameters_survive_any_characters(text):
    part = hd_spec.get("agla", blip=text)
    assert hd_spec.parse(hd_spec.format([part]) + "+greedy")[0] == part


@given(st.text(alphabet=string.ascii_lowercase + "()=,+@'\"[]. 019_", max_size=30))
def test_any_text_parses_or_gives_one_clear_sentence(text):
    try:
        parts = hd_spec.parse(text)
    except HalluDecodeError as error:
        assert "\n" not in str(error)
        assert str(error).endswith(".")
    else:
        assert hd_spec.parse(hd_spec.format(parts)) == parts


def test_spellings_of_one_strategy_are_equal():
    one = hd_spec.parse("vcd")
    assert (
        one == hd_spec.parse(" vcd( ) ") == hd_spec.parse("vcd(alpha=1)") == hd_spec.parse(["vcd"])
    )
    assert one == hd_spec.parse([{"vcd": {"alpha": 1}}]) == hd_spec.parse({"vcd": None})
    assert hd_spec.format(one) == "vcd(alpha=1.0,beta=0.1,noise_step=500)"
    assert hash(one[0]) == hash(hd_spec.get("vcd"))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("vdc", UnknownStrategy, ["'vdc'", "Did you mean 'vcd'", "Known:", "greedy"]),
        ("", InvalidParameter, ["cannot read"]),
        ("vcd(beta=1.5)", InvalidParameter, ["vcd(beta=1.5)", "in [0, 1]"]),
        ("vcd(noise_step=1000)", InvalidParameter, ["noise_step", "in [0, 1000)"]),
        ("vcd(noise_step=2.5)", InvalidParameter, ["noise_step", "int"]),
        ("vcd(alpha=big)", InvalidParameter, ["vcd(alpha='big')", "float"]),
        ("vcd(alpha=1e999)", InvalidParameter, ["alpha"]),
        pytest.param(f"vcd(alpha={'9' * 900})", InvalidParameter, ["at most 1e+30"], id="digits"),
        pytest.param(f"vcd{' ' * 20_000}!", InvalidParameter, ["cannot read"], id="blanks"),
        pytest.param(
            f"vcd@x(alpha=1){' ' * 20_000}!", InvalidParameter, ["cannot read"], id="more blanks"
        ),
        (
            "vcd(alhpa=1)",
            InvalidParameter,
            ["'alhpa'", "Did you mean 'alpha'", "alpha, beta, noise_step"],
        ),
        ("vcd(1)", InvalidParameter, ["not key=value"]),
        ("vcd(alpha=1,alpha=2)", InvalidParameter, ["twice"]),
        ("vcd(alpha=1", InvalidParameter, ["brackets or quotes"]),
        ("vcd(alpha=__import__('os'))", InvalidParameter, ["cannot read the value"]),
        ("vcd@nowhere", InvalidParameter, ["no such preset"]),
        ("agla(matcher=clip)", InvalidParameter, ["one of self, blip"]),
        ("greedy(x=1)", InvalidParameter, ["takes no parameters"]),
        ("m3id(gate=0)", InvalidParameter, ["in (0, 1]"]),
    ],
)
def test_bad_specs_say_what_where_and_what_to_do(text, error, words):
    with pytest.raises(error) as caught:
        hd_spec.parse(text)
    for word in words:
        assert word in str(caught.value)


def test_presets_come_before_explicit_values():
    name = "llava-1.5-7b"
    preset = hd_spec.parse(f"var@{name}")[0]
    assert preset.dims == (1415, 2533)
    moved = hd_spec.parse(f"var@{name}(p=0.3)")[0]
    assert moved.p == 0.3
    assert moved.dims == preset.dims
    for entries in hd_spec.presets("var").values():
        assert all(e["source"] for key, e in entries.items() if key != "note"), (
            "every value has a source"
        )


def test_every_shipped_preset_loads():
    for name in STRATEGIES.names():
        for preset in hd_spec.presets(name):
            assert hd_spec.get(f"{name}@{preset}")


def test_yaml_form_of_the_architecture():
    import yaml

    listed = yaml.safe_load('[greedy, vcd, {var: {p: 0.6}}, "var+vcd"]')
    names = [[p.name for p in hd_spec.parse(entry)] for entry in listed]
    assert names == [["greedy"], ["vcd"], ["var"], ["var", "vcd"]]


@pytest.mark.parametrize("bad", [5, None, {"vcd": 0.5}, [["vcd", 5]], [None]])
def test_things_that_are_no_specs_are_refused(bad):
    with pytest.raises(InvalidParameter, match=r"Strategy "):
        hd_spec.parse(bad)


def test_names_of_yaml_that_are_no_text_are_refused_as_names():
    with pytest.raises(InvalidParameter, match="vcd has no parameter '1'"):
        hd_spec.parse({"vcd": {1: 2}})
    with pytest.raises(UnknownStrategy, match="'3'"):
        hd_spec.parse({3: None})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"conbine": lambda self, step: step["main"]}, "Did you mean 'combine'"),
        ({"brances": lambda self, prompt, state, m: {}}, "Did you mean 'branches'"),
        ({"alpha": 0.5, "__annotations__": {"alpha": float}}, "alpha is no parameter yet"),
        (
            {"activations": lambda self, prompt: {}},
            "activations(self, prompt) cannot be called as (self, prompt, m)",
        ),
    ],
)
def test_a_misspelt_hook_or_a_bare_field_is_refused_and_not_registered(body, message):
    with pytest.raises(InvalidParameter) as caught:
        strategy("misspelt")(type("Misspelt", (Strategy,), dict(body)))
    assert message in str(caught.value)
    assert "misspelt" not in STRATEGIES.names()
    with pytest.raises(InvalidParameter, match="@strategy needs a name"):
        strategy(Strategy)


def test_annotations_may_be_evaluated_or_not():
    """A notebook cell has no `from __future__ import annotations`."""
    import halludecode as hd

    namespace = {"hd": hd}
    code = (
        "@hd.strategy('eager_test')\n"
        "class Eager(hd.Strategy):\n"
        "    a: float = hd.param(1, 'x', ge=0)\n"
        "    b: int | None = hd.param(None, 'y')\n"
        "    c: tuple[int, ...] = hd.param((1,), 'z')\n"
    )
    try:
        exec(code, namespace)
        made = namespace["Eager"](a=2, b=3, c=[4, 5])
        assert (made.a, made.b, made.c) == (2.0, 3, (4, 5))
        for wrong in ({"a": "x"}, {"b": 2.5}, {"c": [True]}, {"a": -1}):
            with pytest.raises(InvalidParameter):
                namespace["Eager"](**wrong)
    finally:
        STRATEGIES._entries.pop("eager_test")
