"""ZeroTuning: vectors, chosen heads, the search, and the engine against a biased mask."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import halludecode as hd
from halludecode.calibration.calibrator import _entropy
from halludecode.core.artifact import Artifact
from halludecode.core.attention import Attention
from halludecode.core.attention_block import IMAGE, PAD, SYSTEM, TEXT, AttentionBlock
from halludecode.core.attention_hooks import Hooks
from halludecode.core.calibration import Calibration
from halludecode.core.heads import DOWN, PROBE, UP, profile
from halludecode.core.plan import typical_model_info
from halludecode.engines.api import Choice, Output, Timings, TokenLogprob
from halludecode.engines.hf.engine import HFEngine
from halludecode.strategies.zerotuning import ZeroTuning
from tests.core.test_attention import block_of, common_block
from tests.support import families, naive

PATH = Path(__file__).parents[1] / "data" / "attention.json"
CASES = json.loads(PATH.read_text(encoding="utf-8"))["cases"]
CASE = CASES["zerotuning"]


def attended(block: AttentionBlock, gamma: float, heads: torch.Tensor) -> torch.Tensor:
    """[H, Q, N] weights after the strategy, in layer 2 of a model with these heads."""
    count = block.scores().shape[1]
    mask = torch.zeros(8, count, dtype=torch.bool)
    mask[2] = heads
    model_info = replace(
        typical_model_info(), num_layers=8, num_heads=count, artifact={"heads": mask}
    )
    a = Attention(
        2, model_info, {"main": block}, Hooks(lambda *_: None, lambda *_: None), "zerotuning"
    )
    ZeroTuning(gamma=gamma).attend(a)
    return block.weights()[0]


@pytest.mark.parametrize("variant", CASE["variants"], ids=lambda v: f"gamma_{v['gamma']}")
def test_weights_and_outputs_match_the_vectors(variant):
    block = common_block()
    made = attended(block, variant["gamma"], torch.tensor([True, True]))
    wanted = torch.tensor(variant["weights"], dtype=torch.float64)
    torch.testing.assert_close(made.double(), wanted, atol=2e-6, rtol=0)
    outputs = torch.tensor(variant["outputs"], dtype=torch.float64)
    torch.testing.assert_close(block.output()[0].double(), outputs, atol=2e-6, rtol=0)


def test_only_the_chosen_heads_change():
    plain, both = (
        common_block().weights()[0],
        attended(common_block(), 4.0, torch.tensor([True, True])),
    )
    made = attended(common_block(), 4.0, torch.tensor([False, True]))
    assert torch.equal(made[0], plain[0])
    assert torch.equal(made[1], both[1])
    assert not torch.equal(both[0], plain[0])


def test_the_first_key_is_the_first_that_is_not_padding():
    case = CASES["zerotuning_left_pad"]
    scores = [[[-torch.inf if x == "-inf" else x for x in case["scores"][0]]]]
    kinds = [PAD, SYSTEM, IMAGE, IMAGE, TEXT, TEXT]
    block = block_of(scores, torch.ones(1, 6, 2).tolist(), kinds, [5], 6)
    made = attended(block, case["gamma"], torch.tensor([True]))
    wanted = torch.tensor([case["weights_out"]], dtype=torch.float64)
    torch.testing.assert_close(made.double(), wanted, atol=2e-6, rtol=0)


def test_without_a_picture_nothing_changes():
    scores, values = torch.zeros(1, 2, 4).tolist(), torch.ones(1, 4, 2).tolist()
    block = block_of(scores, values, [SYSTEM] * 4, [2, 3], 4)
    before = block.weights().clone()
    assert torch.equal(attended(block, 4.0, torch.tensor([True])), before[0])


# The search -------------------------------------------------------------------------------------


def search(effect, answers=("yes",)):
    """Profile two layers of two heads by a made-up score(gamma, heads)."""
    asked: list[tuple[float, list[bool]]] = []

    def score(gamma: float, heads: torch.Tensor) -> float:
        asked.append((gamma, heads.flatten().tolist()))
        return effect(gamma, heads.flatten().float())

    cal = Calibration((), lambda request: None, answers)
    model_info = replace(typical_model_info(), num_layers=2, num_heads=2)
    return profile(cal, model_info, score), cal.notes[0], asked


def test_the_larger_kind_of_heads_is_kept_and_its_gamma_searched():
    sign = torch.tensor([1.0, -1.0, 1.0, 0.0])

    def effect(gamma: float, heads: torch.Tensor) -> float:
        return 0.5 + 0.1 * float((sign * heads).sum()) * (1 - abs(math.log(gamma / 3))) * (
            gamma != 1
        )

    found, note, asked = search(effect)
    assert found["heads"].flatten().tolist() == [True, False, True, False]
    assert float(found["gamma"]) == 3.0
    assert note.startswith("2 of 4 heads are up-effective; accuracy 0.5000 -> 0.7000 at gamma 3")
    alone = [heads for gamma, heads in asked[1:5]]
    assert [gamma for gamma, _ in asked[1:5]] == [PROBE] * 4
    assert alone == torch.eye(4).bool().tolist()
    assert [gamma for gamma, _ in asked[5:]] == list(UP)


def test_heads_that_lose_are_scaled_down():
    found, note, asked = search(lambda g, heads: -math.log(g) * float(heads[:3].sum()), (None,))
    assert found["heads"].flatten().tolist() == [True, True, True, False]
    assert float(found["gamma"]) == pytest.approx(min(DOWN))
    assert "3 of 4 heads are down-effective; minus mean entropy" in note
    assert [gamma for gamma, _ in asked[5:]] == list(DOWN)


def test_where_nothing_helps_gamma_is_one():
    found, note, asked = search(lambda gamma, heads: 0.75)
    assert (float(found["gamma"]), int(found["heads"].sum())) == (1.0, 0)
    assert "accuracy 0.7500 -> 0.7500 at gamma 1" in note
    assert len(asked) == 5, "no head, no search"
    up_alone_only = search(lambda g, heads: float(heads.sum() == 1 and g == PROBE))[0]
    assert float(up_alone_only["gamma"]) == 1.0


def test_entropy_matches_the_vector():
    told = CASE["entropy_search"]
    for name, wanted in zip("ab", told["entropy"], strict=True):
        log_p = torch.tensor(told[f"logits_gamma_{name}"], dtype=torch.float64).log_softmax(-1)
        top = dict(enumerate(log_p.tolist()))
        first = TokenLogprob(0, "", top[0], top)
        choice = Choice("", (0,), "length", (first,))
        output = Output((choice,), "", None, Timings(), ("main",))
        assert _entropy(output) == pytest.approx(wanted, abs=2e-6)


# Through the engine -----------------------------------------------------------------------------


@pytest.fixture
def engine(family_engine, tmp_path):
    loaded = family_engine("llava")
    return HFEngine(loaded.model, loaded.processor, artifacts=tmp_path)


def test_engine_equals_a_biased_mask(engine):
    """The same heads in every layer: a float mask per head says the same to the plain model."""
    heads = torch.tensor([True, False, True, True])
    tensors = {"heads": heads.expand(6, 4).contiguous(), "gamma": torch.tensor(5.0)}
    engine.calibrator.store.save(Artifact("zerotuning", {}, engine.digest, tensors))
    family, image = families.FAMILIES["llava"], families.pictures()[1]
    inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [image])

    @torch.no_grad()
    def step(ids: list[int], t: int) -> torch.Tensor:
        fed = naive.extended(inputs, ids)
        n = fed["input_ids"].shape[1]
        mask = torch.full((n, n), -torch.inf).triu(1).repeat(1, 4, 1, 1)
        mask[:, heads, :, 0] += math.log(5.0)
        return engine.model(**{**fed, "attention_mask": mask}, use_cache=False).logits[0, -1]

    wanted = naive.write(step, 4, ())
    sampling = hd.Sampling(max_new_tokens=4, min_new_tokens=4)
    request = hd.Request("What is this?", [image])
    made = engine.generate([request], "zerotuning", sampling)[0]
    assert list(made.token_ids) == wanted.ids
    assert list(engine.generate([request], "greedy", sampling)[0].token_ids) != wanted.ids


def test_calibration_with_labels_counts_right_answers(engine):
    pictures = families.pictures()
    labels = ("yes", "no", "yes")
    samples = [(hd.Request("Is it so?", [p]), a) for p, a in zip(pictures, labels, strict=True)]
    artifact = engine.calibrate("zerotuning", samples)
    plan = engine.plan("zerotuning")
    right = []
    for spec in ("greedy", plan):
        sampling = hd.Sampling(max_new_tokens=1)
        made = engine.generate([r for r, _ in samples], spec, sampling, score_words=("yes", "no"))
        said = ["yes" if o.scores["yes"] > o.scores["no"] else "no" for o in made]
        right.append(sum(s == a for s, (_, a) in zip(said, samples, strict=True)) / 3)
    assert f"accuracy {right[0]:.4f} -> {right[1]:.4f} at gamma" in artifact.notes[0]
    assert artifact["gain"].shape == (6, 4)
    assert plan.canonical == f"zerotuning(gamma=None,pin={artifact.name})"


def test_calibration_without_labels_lowers_the_entropy(engine):
    samples = [(hd.Request("What is this?", [p]), None) for p in families.pictures()]
    artifact = engine.calibrate("zerotuning", samples)

    def entropy(spec: str) -> float:
        sampling = hd.Sampling(max_new_tokens=1, logprobs=engine.model_info.vocab_size)
        made = engine.generate([r for r, _ in samples], spec, sampling)
        return sum(-sum(math.exp(x) * x for x in o.logprobs[0].top.values()) for o in made) / 3

    before, after = entropy("greedy"), entropy("zerotuning")
    assert after < before
    assert f"minus mean entropy {-before:.4f} -> {-after:.4f}" in artifact.notes[0]
