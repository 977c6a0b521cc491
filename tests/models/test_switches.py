"""A family's row that does not fit its model ends in the switch to try."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

import halludecode as hd
from tests.support import families

WRONG = [
    *((family, "nested") for family in ("llava", "internvl", "idefics3")),
    *((family, "packed") for family in ("llava", "internvl")),  # Idefics3 takes both since 5.20.1
]


@pytest.mark.parametrize(("family", "switch"), WRONG)
def test_a_wrong_switch_is_named(family, switch, tmp_path_factory):
    engine = hd.load(str(families.family_path(family, tmp_path_factory)))
    request = hd.Request("What is it?", [Image.new("RGB", (64, 64), (200, 10, 10))])
    sampling = hd.Sampling(max_new_tokens=2)
    right = engine.hf_model.family
    engine.hf_model.family = replace(right, **{switch: not getattr(right, switch)})
    with pytest.raises(hd.InvalidModel, match=f"try {switch}={getattr(right, switch)} in its row"):
        engine.generate([request], sampling=sampling)
    engine.hf_model.family = right
    assert engine.generate([request], sampling=sampling)[0].token_ids
