"""Every strategy on other families, all in one batch: the tokens of the HF engine."""

from __future__ import annotations

import functools
import json
import re
import shutil

import pytest

import halludecode as hd
from halludecode.core.registry import STRATEGIES
from tests.engines.vllm.conftest import ENGINES
from tests.support import families, specs
from tests.support.vllm import ACTIVE, answer_together, edge_gaps, same

NAMES = [*STRATEGIES.names(), *specs.COMPOSED, "damro+agla", "lacing(attention=dual)"]
CHOSEN = ("qwen2_5_vl", "internvl")
ABSENT = ("aya_vision", "deepseek_vl", "fast_vlm", "glm46v", "instructblip", "janus", "kimi_k25")
ABSENT += ("ovis2", "vipllava")
REFUSED = {
    "gemma3": "Gemma 3.*engine='hf'",
    "gemma3n": "Gemma 3n.*engine='hf'",
    "gemma4": "Gemma 4.*engine='hf'",
    "aria": "Aria.*engine='hf'",
    "cohere2_vision": "Command A Vision.*engine='hf'",
    "lfm2_vl": "LFM2-VL.*engine='hf'",
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "minicpmv4_6"), "gated delta.*engine='hf'"),
    "paligemma": "PaliGemma.*engine='hf'",
    "llama4": "Llama 4.*engine='hf'",
    **dict.fromkeys(ABSENT, r"vLLM [\d.]+ has no \w+ForConditionalGeneration of its own; .*'hf'"),
}
REST = [name for name in families.FAMILIES if name not in (*CHOSEN, *REFUSED)]
# RITUAL's crop is 336 x 336, a shape that vLLM cuts into other tokens.
CUT = {("llava_onevision", "ritual"): "tokens of a 336 x 336 picture"}
# transformers merges the experts of a checkpoint, so its digest on this engine is another.
MERGED = ("qwen3_vl_moe",)
UNNAMED = "engine 'vllm': an artifact made on engine 'hf' is not known to be of these weights"
GREEDY = {"max_new_tokens": 8, "logprobs": 3}
SAMPLED = {**GREEDY, "temperature": 1.3, "top_p": 0.95, "seed": 11, "repetition_penalty": 1.1}


@pytest.fixture
def engines(vllm_engine, family_engine, supplied, request):
    """A family's two engines."""
    if request.param in MERGED and ENGINES:
        pytest.skip("vLLM makes the group of experts with the first engine of a process")
    return supplied(vllm_engine(request.param), family_engine(request.param))


@pytest.fixture
def noted(record_property):
    """Notes what became of a strategy on a family, for the table of README.md (`make record`)."""

    def note(family, name, outcome, reason=""):
        if name in STRATEGIES.names() or name in specs.COMPOSED:
            record_property("outcome", ("vllm", family, name, outcome, reason))

    return note


def reason_of(error) -> str:
    return str(error).partition(";")[0].partition(", so answers")[0]


def refused(ours, spec) -> str:
    """Why our engine refuses a strategy; "" if it does not."""
    try:
        ours.plan(spec)
    except hd.UnsupportedStrategy as error:
        return str(error).partition(" needs ")[2] or str(error)
    return ""


def compare(ours, hf, noted) -> int:
    """Run everything in one batch, compare one by one; the number compared."""
    family = hf.model.config.model_type
    words = ["What is this?", "Describe it, please."]
    asked = [hd.Request(w, [p]) for w, p in zip(words, families.pictures()[:2], strict=True)]
    given, wanted = [], []
    for name in NAMES:
        spec = "+".join(ACTIVE.get(part, part) for part in name.split("+"))
        why = refused(ours, spec)
        if why:
            reason = specs.refused(family, name)
            if reason:
                with pytest.raises(hd.UnsupportedStrategy, match=re.escape(reason)):
                    hf.plan(spec)
            unnamed = family in MERGED and "an artifact made for this model" in why
            told = UNNAMED if unnamed else f"engine 'vllm': {why.partition(';')[0]}"
            noted(family, name, "refused", reason or told)
            assert reason or name == "opera" or unnamed, why
            continue
        if (family, name) in CUT:
            with pytest.raises(hd.InvalidRequest, match=CUT[family, name]) as cut:
                ours.generate(asked[1], spec, hd.Sampling(**GREEDY))
            noted(family, name, "refused", f"engine 'vllm': {reason_of(cut.value)}")
            continue
        for sampling in (hd.Sampling(**GREEDY), hd.Sampling(**SAMPLED)):
            given += [(name, request, spec, sampling) for request in asked]
            wanted += hf.generate(asked, spec, sampling)
    found = answer_together(ours, [one[1:] for one in given])
    wrong = {}
    for (name, *asked), a, b in zip(given, found, wanted, strict=True):
        if not same(a, b, functools.partial(edge_gaps, hf, *asked)):
            wrong[name] = f"{name} {asked[-1]}: {a.token_ids} {b.token_ids}"
    for name in dict.fromkeys(one[0] for one in given):
        noted(family, name, "fail" if name in wrong else "pass")
    assert not wrong, "\n".join(wrong.values())
    return len(given)


@pytest.mark.parametrize("engines", CHOSEN, indirect=True)
def test_every_strategy_gives_the_tokens_of_the_hf_engine(engines, noted):
    assert compare(*engines, noted) > 60


@pytest.mark.full
@pytest.mark.parametrize("engines", REST, indirect=True)
def test_every_strategy_on_further_families(engines, noted):
    assert compare(*engines, noted) > 60


@pytest.mark.full
def test_a_picture_that_vllm_cuts_into_other_tokens_is_refused(vllm_engine, family_engine):
    ours, hf = vllm_engine("llava_onevision"), family_engine("llava_onevision")
    sampling = hd.Sampling(max_new_tokens=8, logprobs=3)
    refused = 0
    for picture in families.pictures():
        asked = hd.Request("What is this?", [picture])
        try:
            made = ours.generate(asked, "vcd", sampling)[0]
        except hd.InvalidRequest as error:
            assert "tokens of a 90 x 140 picture, where" in str(error)
            refused += 1
        else:
            assert same(made, hf.generate(asked, "vcd", sampling)[0])
    assert refused == 1


@pytest.mark.full
def test_several_pictures_are_the_tokens_of_the_models_own_processor(vllm_engine, family_engine):
    """LLaVA-OneVision takes each as one view; vLLM's own processor cuts each as if alone."""
    ours, hf = vllm_engine("llava_onevision"), family_engine("llava_onevision")
    pair = families.pictures()[1:]
    asked = hd.Request("Compare.", pair)
    own = hf.processor(
        text=families.FAMILIES["llava_onevision"].prompt("Compare.", 2), images=[pair],
        return_tensors="pt",
    )  # fmt: skip
    assert ours.rows(asked)["main"].input_ids.tolist() == own["input_ids"][0].tolist()
    assert [image.count for image in ours.rows(asked)["main"].images] == [65, 65]
    sampling = hd.Sampling(max_new_tokens=8, logprobs=3)
    for spec in ("greedy", "vcd", "damro", "vicrop(base=24)"):
        wanted = [hf.generate(one, spec, sampling)[0] for one in (asked, hd.Request("?", pair[:1]))]
        found = ours.generate([asked, hd.Request("?", pair[:1])], spec, sampling)
        assert all(map(same, found, wanted)), spec


@pytest.mark.parametrize(("family", "why"), REFUSED.items())
def test_families_that_vllm_answers_otherwise_are_refused(tmp_path_factory, noted, family, why):
    path = families.family_path(family, tmp_path_factory)
    with pytest.raises(hd.InvalidModel, match=why) as caught:
        hd.load(str(path), engine="vllm")
    for name in NAMES:
        noted(family, name, "refused", specs.refused(family, name) or reason_of(caught.value))


def test_a_glm4v_whose_biases_vllm_would_leave_out_is_refused(tmp_path, tmp_path_factory):
    path = shutil.copytree(families.family_path("glm4v", tmp_path_factory), tmp_path / "glm4v")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    del config["text_config"]["attention_bias"]
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(hd.InvalidModel, match=r'says "attention_bias": true.*engine=\'hf\''):
        hd.load(str(path), engine="vllm")
