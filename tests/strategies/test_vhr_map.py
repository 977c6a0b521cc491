"""VHR, SPIN and AD-HH with heads from a saved map: what they do, which maps are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import halludecode as hd
from halludecode.analysis.head_map import Grid, HeadMap
from halludecode.analysis.head_sensitivity import head_sensitivity
from halludecode.engines.hf.engine import HFEngine
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive

SHORT = hd.Sampling(max_new_tokens=4, logprobs=3)


@pytest.fixture
def engine(family_engine, tmp_path):
    loaded = family_engine("llava")
    return HFEngine(loaded.model, loaded.processor, artifacts=tmp_path / "artifacts")


def saved(engine, tmp_path, values, metric="vhd", name="map.json", **parts):
    def grid(x):
        return Grid(*(np.asarray(x, dtype=np.float64) for _ in range(3)))

    made = HeadMap(
        metric, engine.model_id, engine.digest, 1, 1, grid(values),
        parts={n: grid(x) for n, x in parts.items()},
    )  # fmt: skip
    return made.save(tmp_path / name)


def values_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((6, 4))


def test_vhr_scales_heads_above_the_median_of_the_inliers(engine, tmp_path):
    """In layer 1 and the last 14 of 32 (3 of 6), at every position, written out slowly."""
    inliers = values_of(1)
    path = saved(engine, tmp_path, values_of(2), inliers=inliers)
    image = families.pictures()[1]
    inputs = naive.inputs_of(
        engine.processor, families.FAMILIES["llava"].prompt("What is this?"), [image]
    )

    def heads(layer, out):
        if layer not in naive.vhr_layers(6):
            return out
        row = inliers[layer].tolist()
        chosen = [x > naive.median(row) for x in row]
        return naive.reinforce(out, chosen, 2.0)

    def step(ids, t):
        with naive.edited(engine.model, heads=heads):
            return naive.next_logits(engine.model, inputs, ids)

    check(engine, f"vhr(map={path})", naive.write(step, N, ()), image)
    assert engine.plan(f"vhr(map={path})").rows == ("main",), "no image-free stream"


def test_spin_quietens_the_lowest_of_the_map(engine, tmp_path):
    values = values_of(3)
    path = saved(engine, tmp_path, values, "mass")
    image = families.pictures()[1]
    inputs = naive.inputs_of(
        engine.processor, families.FAMILIES["llava"].prompt("What is this?"), [image]
    )
    length = inputs["input_ids"].shape[1]

    def heads(layer, out):
        out = out.clone()
        for head in sorted(range(4), key=lambda h: values[layer, h])[:2]:
            out[head, length - 1 :] *= 0.08
        return out

    def step(ids, t):
        with naive.edited(engine.model, heads=heads):
            return naive.next_logits(engine.model, inputs, ids)

    check(engine, f"spin(r=0.5,map={path})", naive.write(step, N, ()), image)


def test_adhh_takes_the_top_of_an_ablation_map(engine, tmp_path):
    values = np.full((6, 4), -1.0)
    values[2, 1], values[4, 3], values[0, 0] = 0.3, 0.5, 0.1
    path = saved(engine, tmp_path, values, "ablation")
    request = hd.Request("What is this?", [families.pictures()[0]])
    mapped = engine.generate([request], f"adhh(tau=0,top=2,map={path})", SHORT)[0]
    listed = engine.generate([request], "adhh(tau=0,heads=(2,1,4,3))", SHORT)[0]
    assert mapped.token_ids == listed.token_ids
    assert [x.logprob for x in mapped.logprobs] == [x.logprob for x in listed.logprobs]
    plain = engine.generate([request], "greedy", SHORT)[0]
    assert [x.logprob for x in mapped.logprobs] != [x.logprob for x in plain.logprobs]


@pytest.mark.parametrize("spec", ["vhr(map={},alpha=1)", "spin(map={},alpha=1)"])
def test_off_is_off(engine, tmp_path, spec):
    spec = spec.format(saved(engine, tmp_path, values_of(4)))
    requests = [hd.Request("What is this?", [p]) for p in families.pictures()]
    plan = engine.plan(spec, skip_off=False)
    assert len(plan.parts) == 1
    off = engine.generate(requests, plan, SHORT)
    greedy = engine.generate(requests, "greedy", SHORT)
    assert [o.token_ids for o in off] == [o.token_ids for o in greedy]


def test_batches_text_only_requests_and_composition(engine, tmp_path):
    path = saved(engine, tmp_path, values_of(5))
    requests = [hd.Request("Hello there"), *(hd.Request("Why?", [p]) for p in families.pictures())]
    for spec in (f"vhr(map={path})", f"spin(map={path},r=0.5)", f"vhr(map={path})+vcd"):
        together = engine.generate(requests, spec, SHORT)
        plain = engine.generate(requests[:1], "greedy", SHORT)[0]
        assert together[0].token_ids == plain.token_ids
        for request, batched in zip(requests[1:], together[1:], strict=True):
            single = engine.generate([request], spec, SHORT)[0]
            assert single.token_ids == batched.token_ids
        assert together[1].logprobs != engine.generate(requests[1:2], "greedy", SHORT)[0].logprobs


def test_a_plain_model_obeys_fixed_heads(engine, tmp_path):
    spec = f"vhr(map={saved(engine, tmp_path, values_of(6))})"
    image = families.pictures()[0]
    text = families.FAMILIES["llava"].prompt("What is this?")
    inputs = engine.processor(text=text, images=[image], return_tensors="pt")
    with hd.applied(engine.model, engine.processor, spec):
        ids = engine.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    made = engine.generate([hd.Request("What is this?", [image])], spec, SHORT)[0]
    assert ids[0, inputs["input_ids"].shape[1] :].tolist()[: len(made.token_ids)] == list(
        made.token_ids
    )


def test_the_run_record_names_the_maps_content(engine, tmp_path):
    first = saved(engine, tmp_path, values_of(7), name="a.json")
    other = saved(engine, tmp_path, values_of(8), name="b.json")
    told = [
        engine.plan(f"vhr(map={p})").describe()["artifacts"]["vhr"] for p in (first, other)
    ]  # fmt: skip
    assert told[0]["digest"] != told[1]["digest"]
    assert "artifacts" not in engine.plan("vhr").describe()


def test_a_measured_map_is_taken_as_it_is(engine, tmp_path):
    samples = [hd.Request("What is this?", [p]) for p in families.pictures()]
    head_sensitivity(engine, samples, "vhd", output=tmp_path, tokens=1, resamples=10)
    plan = engine.plan(f"vhr(map={tmp_path / 'vhd.json'})")
    wanted = HeadMap.load(tmp_path / "vhd.json").parts["inliers"].values
    made = plan.parts[0].strategy.values(plan.parts[0].model_info)
    torch.testing.assert_close(made, torch.tensor(wanted, dtype=torch.float32))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_digest": "0" * 32}, r"made on another model \(weights 00000000, here"),
        ({"layers": 7}, r"the map has 7 layers of 4 heads, this model 6 of 4"),
        ({"metric": "ablation"}, r"a map of 'ablation'; vhr needs 'vhd' or 'mass'"),
        ({"schema": 2}, "not a map that `halludecode heads` saved"),
    ],
)
def test_maps_that_do_not_fit_are_refused(engine, tmp_path, change, told):
    path = saved(engine, tmp_path, values_of(9))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(hd.HalluDecodeError, match=told):
        engine.plan(f"vhr(map={path})")
    assert not (tmp_path / "artifacts").exists(), "nothing of it is kept"


def test_an_absent_map_and_calibrating_without_one_are_told(engine):
    with pytest.raises(hd.InvalidData, match=r"absent.json: the map cannot be read"):
        engine.plan("spin(map=absent.json)")
    with pytest.raises(hd.InvalidParameter, match=r"give vhr\(map=FILE\)"):
        engine.calibrate("vhr")
