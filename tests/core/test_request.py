"""Numbers as users have them: of numpy, of YAML, out of bounds, or no numbers at all."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import halludecode as hd
from halludecode.core.errors import InvalidParameter, UnknownStrategy
from halludecode.core.spec import format, parse


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("temperature", "0.5", "must be a number"),
        ("temperature", None, "must be a number"),
        ("temperature", float("nan"), "must be finite"),
        ("temperature", True, "must be a number"),
        ("top_p", "1", "must be a number"),
        ("top_p", [1], "must be a number"),
        ("repetition_penalty", float("inf"), "must be finite"),
        ("max_new_tokens", 2.5, "must be an integer"),
        ("max_new_tokens", "8", "must be an integer"),
        ("min_new_tokens", None, "must be an integer"),
        ("top_k", 1.0, "must be an integer"),
        ("n", True, "must be an integer"),
        ("seed", "a", "must be an integer"),
        ("seed", 1.5, "must be an integer"),
        ("logprobs", "2", "must be an integer"),
        ("stop", 5, "non-empty strings"),
        ("stop", [5], "non-empty strings"),
    ],
)
def test_what_is_no_number_is_one_sentence(field, value, why):
    with pytest.raises(InvalidParameter, match=rf"Sampling\({field}=.*{why}"):
        hd.Sampling(**{field: value})


def test_numbers_of_numpy_are_numbers():
    made = hd.Sampling(
        max_new_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1), top_p=1
    )
    assert made == hd.Sampling(max_new_tokens=3, temperature=0.5, seed=1)
    assert {type(made.seed), type(made.top_p)} == {int, float}
    assert format(parse(hd.get("vcd", alpha=np.float64(0.5)))) == format(parse("vcd(alpha=0.5)"))


@pytest.mark.parametrize("text", ["1e-1", "1E-1", "+1e-1", "1.e-1"])
def test_exponents_that_yaml_takes_for_text_are_numbers(text):
    given = yaml.safe_load(f"vcd: {{beta: {text}}}")
    assert format(parse(given)) == format(parse("vcd(beta=0.1)"))


def test_infinite_parameters_are_told_as_such():
    for text in ("vcd(alpha=1e400)", "vcd(alpha=-1e400)", "vcd(noise_step=1e400)"):
        with pytest.raises(InvalidParameter, match=r"finite|must be a int"):
            parse(text)
    with pytest.raises(InvalidParameter, match="beta must be a float"):
        parse(yaml.safe_load("vcd: {beta: lots}"))


@pytest.mark.parametrize(("name", "meant"), [("VCD", "vcd"), ("DoLa", "dola"), ("Spin", "spin")])
def test_names_in_other_letters_are_near_misses(name, meant):
    with pytest.raises(UnknownStrategy, match=f"Did you mean '{meant}'"):
        parse(name)
