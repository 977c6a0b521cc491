"""Token activation maps: the published vector, loops, and a whole answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import halludecode as hd
from halludecode.analysis import token_activation as tam
from halludecode.analysis.explanation_page import write_page
from halludecode.core.errors import InvalidRequest
from halludecode.testbed.scenes import scenes

PICTURE = Image.fromarray(next(iter(scenes("iid", 1))).image)
CASE = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"]["tam"]


def test_the_published_check():
    given = [np.array(CASE[name]) for name in ("activation", "previous_maps", "text_weights")]
    made = tam.without_interference(*given)
    np.testing.assert_allclose(made, CASE["eci"], atol=2e-6)
    window = np.array(CASE["rank_filter"]["window"]).reshape(3, 3)
    assert tam.rank_filtered(window)[1, 1] == pytest.approx(CASE["rank_filter"]["value"], abs=2e-6)


def test_constant_and_dark_windows_keep_their_value():
    np.testing.assert_allclose(tam.rank_filtered(np.full((3, 4), 0.5)), 0.5)
    assert not tam.rank_filtered(np.zeros((2, 2))).any()
    assert tam.rank_filtered(np.ones((1, 1))) == 1


def loops(logits, image, ids, first):
    """The same token by token, place by place."""
    places, start, made = [i for i, on in enumerate(image) if on], len(image) - len(ids), []

    def at(k):
        return start + k if k < first else start + k - 1

    for j in range(first, len(ids)):
        own = [max(logits[i][j], 0.0) for i in places]
        said = [max(logits[at(k)][j], 0.0) for k in range(j)]
        others = [k for k in range(j) if ids[k] != ids[j]]
        if others:
            total = sum(said[k] for k in others) + 1e-8
            common = [sum(said[k] / total * max(logits[i][k], 0.0) for k in others) for i in places]
            norm = sum(x * x for x in common)
            scale = sum(a * b for a, b in zip(own, common, strict=True)) / norm if norm else 0
            own = [max(a - scale * b, 0.0) for a, b in zip(own, common, strict=True)]
        low, high = min(own + said), max(own + said)
        made.append([(x - low) / (high - low) for x in own])
    return made


def test_maps_are_those_of_loops():
    rng = np.random.default_rng(2)
    image = np.array([0, 1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    ids = [7, 8, 9, 8, 3]  # a word that comes again
    logits = rng.normal(size=(10, 5))
    made = tam.token_maps(logits, image, ids, 2)
    np.testing.assert_allclose(made, loops(logits.tolist(), image, ids, 2), atol=1e-9)
    assert made.shape == (3, 4) and made.min() >= 0 and made.max() <= 1


def test_an_answer_has_a_map_a_token_and_the_page_shows_them(testbed, tmp_path):
    request = hd.Request("Describe the image.", [PICTURE])
    sampling = hd.Sampling(max_new_tokens=4)
    output = testbed.generate(request, "greedy", sampling, explain="maps")[0]
    maps = tam.maps_of(testbed, request, output.choices[0])
    assert len(maps) == len(output.token_ids)
    assert {each.shape for (each,) in maps} == {(10, 10)}
    assert any(each.max() > 0 and math.isfinite(each.sum()) for (each,) in maps)
    page = tmp_path / "why.html"
    write_page(page, testbed, request, output)
    text = page.read_text(encoding="utf-8")
    assert '<option value="activations">token activation' in text and '"activations": [{' in text


def test_words_that_read_otherwise_have_none(testbed):
    request = hd.Request("Why?", [PICTURE])
    output = testbed.generate(request, "greedy", hd.Sampling(max_new_tokens=3))[0]
    choice = replace(output.choices[0], token_ids=(5, 6, 7))  # the same words under other ids
    with pytest.raises(InvalidRequest, match="other tokens when they are read again"):
        tam.maps_of(testbed, request, choice)
