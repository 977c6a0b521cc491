"""CCA, EDVT, MMA and LACING's dual attention: vectors, and runs of plain models built that way."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama import modeling_llama

import halludecode as hd
from halludecode.core.attention_block import IMAGE, PAD, SYSTEM, TEXT, AttentionBlock, turned
from halludecode.core.errors import UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.row_view import _square
from halludecode.views.concentric import positions, rings
from tests.core.test_attention import keys_of
from tests.support import families, naive, specs

CASES = json.loads(Path("tests/data/attention.json").read_text(encoding="utf-8"))["cases"]
IMAGES = families.pictures()
QUESTION = "What is this?"
N = 3


def laid(kinds, pictures):
    keys = keys_of(kinds, list(range(len(kinds))), len(kinds))
    return keys.__class__(
        keys.kind,
        torch.tensor([pictures]).to(torch.int16),
        keys.position,
        keys.query_kind,
        keys.length,
    )


# ---------------------------------------------------------------- vectors


def test_rings_and_positions_of_cca():
    case = CASES["cca"]
    kinds = [SYSTEM] * 2 + [IMAGE] * 16 + [TEXT] * 3
    keys = laid(kinds, [-1] * 2 + [0] * 16 + [-1] * 3)
    square = _square(keys, "cca")
    assert rings(square)[0, 2:18].tolist() == list(itertools.chain(*case["ring"]))
    places = positions(square, keys.kind != PAD)[0].tolist()
    assert places[2:18] == case["image_position_ids"]
    assert places[18] == case["first_text_position"]
    ring = rings(square)[0, 2:18]
    allowed = (ring[None, :] <= ring[:, None]).long().tolist()
    assert allowed == case["image_block_mask_q_by_k"]


def test_a_second_picture_goes_on_behind_the_first_and_padding_has_no_place():
    kinds = [PAD, SYSTEM] + [IMAGE] * 4 + [TEXT] + [IMAGE] * 9 + [TEXT] * 2
    keys = laid(kinds, [-1] * 2 + [0] * 4 + [-1] + [1] * 9 + [-1] * 2)
    places = positions(_square(keys, "cca"), keys.kind != PAD)[0].tolist()
    assert places[1:7] == [0, 1, 1, 1, 1, 2], "one ring"
    assert places[7:] == [3, 3, 3, 3, 4, 3, 3, 3, 3, 5, 6], "two rings, a word"


def test_pictures_that_form_no_square_are_refused():
    with pytest.raises(UnsupportedStrategy, match="one here has 3"):
        _square(laid([SYSTEM, *[IMAGE] * 3], [-1, 0, 0, 0]), "cca")


def test_scores_of_edvt():
    case = CASES["edvt"]
    q, k = (torch.tensor(case[name], dtype=torch.float64).reshape(-1, 2) for name in "qk")
    turn = torch.tensor([case["rope_theta"]], dtype=torch.float64)
    at, there = torch.tensor([[float(case["query_position"])]]), torch.arange(6.0)[None]
    q, k = turned(q[None, None], at, turn), turned(k[None, None], there, turn)
    keys = keys_of([SYSTEM, *[IMAGE] * 3, TEXT, TEXT], [5], 6)
    block = AttentionBlock(keys, q, k, k, torch.ones(1, 6).bool(), 2**-0.5, q)
    wanted = torch.tensor(case["scores_rope"])
    torch.testing.assert_close(block.scores()[0, 0, 0], wanted, atol=2e-6, rtol=0)
    moved = block.elsewhere(-at, -there, turn)[0, 0, 0]
    on = torch.zeros(6).bool().index_fill(0, torch.tensor(case["image_keys"]), True)
    wanted = torch.tensor(case["scores_edvt"])
    torch.testing.assert_close(moved.where(on, block.scores()[0, 0, 0]), wanted, atol=2e-6, rtol=0)


# ---------------------------------------------------------------- whole runs


def own_run(engine, model, spec, forward):
    """Tokens and log-probabilities of a spec are those of a plain model in a way of its own."""
    family = families.FAMILIES["llava"]
    inputs = naive.inputs_of(engine.processor, family.prompt(QUESTION), IMAGES[1:2])

    @torch.no_grad()
    def step(ids, t):
        given = naive.extended(inputs, ids)
        image = given["input_ids"][0] == model.config.image_token_id
        return forward(model, given, image, len(inputs["input_ids"][0]))[0, -1].float()

    wanted = naive.write(step, N, ())
    sampling = hd.Sampling(max_new_tokens=N, logprobs=1)
    made = engine.generate([hd.Request(QUESTION, [IMAGES[1]])], spec, sampling)[0]
    count = len(made.token_ids)
    assert list(made.token_ids) == wanted.ids[:count]
    for got, scores in zip(made.logprobs, wanted.scores, strict=False):
        expected = float(scores.log_softmax(-1)[got.token_id])
        assert got.logprob == pytest.approx(expected, abs=2e-4)
    return made


def masked(model, given, allowed, places):
    """Logits of a plain forward under a mask (bool [T, T]) and positions of our own."""
    mask = torch.zeros(1, 1, *allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    more = {"attention_mask": mask, "position_ids": places[None]}
    return model(**{**given, **more}, use_cache=False).logits


def test_cca_is_a_model_with_other_positions_and_masks(family_engine):
    engine = family_engine("llava")

    def forward(model, given, image, prompt):
        size, start = len(image), int(image.nonzero()[0])
        side = math.isqrt(int(image.sum()))
        places, ring, at = [], {}, 0
        for i in range(size):
            if image[i]:
                r, c = divmod(i - start, side)
                ring[i] = min(r, c, side - 1 - r, side - 1 - c)
                places.append(start + ring[i])
                at = start + (side + 1) // 2
            else:
                places.append(at)
                at += 1
        allowed = torch.zeros(size, size, dtype=torch.bool)
        for q, k in itertools.product(range(size), range(size)):
            both = q in ring and k in ring
            allowed[q, k] = ring[k] <= ring[q] if both else k <= q
        return masked(model, given, allowed, torch.tensor(places))

    output = own_run(engine, engine.model, "cca", forward)
    assert "were not trained with 'cca'" in output.warnings[0]


def test_mma_is_a_model_whose_image_tokens_see_the_question(family_engine):
    engine = family_engine("llava")
    case = CASES["mma_mask"]

    def allowed_of(size, first, stop, end):
        allowed = torch.ones(size, size).tril().bool()
        allowed[first:stop, stop:end] = True
        return allowed

    (first, stop), (_, end) = case["image_span"], case["text_span"]
    assert allowed_of(case["length"], first, stop, end).long().tolist() == case["mask"]

    def forward(model, given, image, prompt):
        at = image.nonzero().flatten()
        allowed = allowed_of(len(image), int(at[0]), int(at[-1]) + 1, prompt - 2)
        return masked(model, given, allowed, torch.arange(len(image)))

    own_run(engine, engine.model, "mma(tail=2)", forward)


RAW: list[tuple[torch.Tensor, torch.Tensor]] = []
SEEN: list[torch.Tensor] = []  # bool [T], image tokens


def edvt_attention(module, query, key, value, attention_mask=None, **more):
    """The last rotated queries and keys' raw ones for image keys."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
    raw_q, raw_k = RAW[-1][0], RAW[-1][1].repeat_interleave(groups, 1)
    scores = (query @ k.mT).where(~SEEN[-1], raw_q @ raw_k.mT) * query.shape[-1] ** -0.5
    causal = torch.ones(scores.shape[-2:]).tril().bool()
    return (scores.masked_fill(~causal, -math.inf).softmax(-1) @ v).transpose(1, 2), None


def dual_attention(module, query, key, value, attention_mask=None, **more):
    """Row by row: a softmax over image keys and one over the others, added."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
    out, image = torch.zeros_like(query), SEEN[-1]
    for h, q in itertools.product(range(query.shape[1]), range(query.shape[2])):
        scores = k[0, h] @ query[0, h, q] * query.shape[-1] ** -0.5
        before = torch.arange(len(scores)) <= q
        pictured = image & before if not image[q] else torch.arange(len(scores)) == q
        for part in (pictured, before & ~image):
            if part.any():
                out[0, h, q] += scores[part].softmax(-1) @ v[0, h, part]
    return out.transpose(1, 2), None


for name, function in (("edvt", edvt_attention), ("dual", dual_attention)):
    AttentionInterface.register(f"halludecode_test_{name}", function)
    AttentionMaskInterface.register(f"halludecode_test_{name}", eager_mask)


def attending(model, name):
    other = copy.deepcopy(model)
    other.set_attn_implementation({"text_config": f"halludecode_test_{name}"})
    return other


def seen(model, given, image, prompt):
    SEEN.append(image)
    return model(**given, use_cache=False).logits


def test_edvt_is_a_model_that_does_not_rotate_for_image_keys(family_engine, monkeypatch):
    engine, stock = family_engine("llava"), modeling_llama.apply_rotary_pos_emb

    def recorded(q, k, cos, sin, *more, **named):
        RAW.append((q, k))
        return stock(q, k, cos, sin, *more, **named)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", recorded)
    own_run(engine, attending(engine.model, "edvt"), "edvt", seen)


def test_dual_attention_adds_two_softmaxes(family_engine, tmp_path, monkeypatch):
    engine = family_engine("llava")
    monkeypatch.setattr(engine.calibrator, "store", engine.calibrator.store)
    specs.supplied(engine, tmp_path)
    engine.forget_plans()
    spec = "lacing(scale=1.0,attention=dual)"  # the main row alone
    output = own_run(engine, attending(engine.model, "dual"), spec, seen)
    assert "were not trained with 'mda'" in output.warnings[0]


# ---------------------------------------------------------------- what it asks and says


def test_weights_that_say_they_were_trained_so_are_taken_at_their_word(family_engine, tmp_path):
    model = copy.deepcopy(family_engine("llava").model)
    model.config.halludecode_scheme = "cca"
    engine = hd.load(model, processor=family_engine("llava").processor)
    request, sampling = hd.Request(QUESTION, IMAGES[:1]), hd.Sampling(max_new_tokens=1)
    assert not engine.generate(request, "cca", sampling)[0].warnings
    assert "'edvt'" in engine.generate(request, "edvt", sampling)[0].warnings[0]


def test_prompts_that_are_opened_start_whole_and_come_first():
    plan = compile_plan("vaf+mma", typical_model_info())
    assert plan.whole and [part.strategy.name for part in plan.attending] == ["mma", "vaf"]
    assert not compile_plan("edvt", typical_model_info()).whole
