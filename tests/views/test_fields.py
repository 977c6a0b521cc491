"""Fields of view round an object, how they are contrasted, and the words of an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from halludecode.core.activations import Activations
from halludecode.core.prompt import Picture
from halludecode.views import fields

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "contrastive.json").read_text())
PAIR = next(v for v in VECTORS["vectors"] if v["id"] == "halc_pair")
ANSWER = ("▁A", "▁d", "og", "s", "▁by", "▁a", "▁car", ".", "</s>")


def test_the_furthest_fields_are_contrasted_both_ways():
    logits = torch.tensor(PAIR["inputs"]["fov_logits"])
    for pair, value in PAIR["expected"]["divergence"].items():
        i, j = map(int, pair.split(","))
        assert fields.distance(logits[i], logits[j]) == pytest.approx(value, abs=1e-6)
    made = fields.contrasts(logits, 1, PAIR["params"]["contrast_weight"])
    wanted = sorted([PAIR["expected"]["scores_ij"], PAIR["expected"]["scores_ji"]])
    torch.testing.assert_close(torch.tensor(sorted(made.tolist())), torch.tensor(wanted))


def test_a_crop_has_a_pixel_at_least_and_a_tiny_one_is_enlarged():
    picture = Picture.of(Image.new("RGB", (40, 30)))
    assert fields.cropped(picture, (0.25, 0.2, 0.5, 1.0)).image.size == (40, 96)
    assert fields.cropped(picture, (1.0, 1.0, 1.0, 1.0)).image.size == (32, 32)
    assert fields.cropped(picture, (0.1, 0.0, 0.9, 1.0)).image.size == (64, 60)


def test_words_and_text_of_tokens():
    assert fields.words_of(ANSWER) == [(0, 1, "a"), (1, 4, "dogs"), (4, 5, "by"), (5, 6, "a"),
                                       (6, 9, "car")]  # fmt: skip


def test_objects_are_named_in_the_singular():
    assert fields.named("dogs", {"dog"}) == "dog"
    assert fields.named("bus", fields.OBJECTS) == "bus"
    assert fields.named("by", fields.OBJECTS) == ""
    assert fields.named("by", ["all"]) == "by"
    assert fields.named("", ["all"]) == ""


def test_the_last_plain_pass_is_the_answer():
    passes = {
        "plain": Activations(token_ids=(5, 6, 7)),
        "word (5, 9)": Activations(token_ids=(1,)),
        "plain 5 9": Activations(token_ids=(8,)),
    }
    assert fields.written(passes, 5).tolist() == [5, 9, 8, -1, -1]
    assert fields.written(passes, 2).tolist() == [5, 9]
    assert fields.written({}, 1).tolist() == [-1]


def test_a_token_is_written_at_its_place_alone_and_only_if_it_may():
    main = torch.zeros(3, 4)
    main[2, 1] = -torch.inf
    answer = torch.tensor([[1, -1], [1, -1], [1, -1]])
    made = fields.only(main, answer, torch.tensor([[1], [3], [1]]))
    assert made.tolist() == [[False, True, False, False], [False] * 4, [False] * 4]
