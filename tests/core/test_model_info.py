"""Layers given for 32-layer models, on models of any depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core.plan import typical_model_info


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, range(5, 18)), (16, range(2, 9)), (6, range(1, 3)), (1, range(1))]
)
def test_a_range_is_scaled_to_the_depth(depth, layers):
    assert replace(typical_model_info(), num_layers=depth).scaled_range(5, 18) == layers


@given(st.integers(1, 96), st.integers(0, 31), st.integers(1, 32))
def test_a_range_holds_a_layer_of_the_model(depth, start, stop):
    layers = replace(typical_model_info(), num_layers=depth).scaled_range(start, stop)
    assert layers and 0 <= layers[0] <= layers[-1] < depth
