"""Head maps and strategies fed by them: vLLM reads and does what the HF engine does."""

from __future__ import annotations

import numpy as np
import pytest

import halludecode as hd
from halludecode.analysis.head_map import Grid, HeadMap
from halludecode.analysis.head_sensitivity import head_sensitivity
from tests.support.vllm import requests, same

FAMILY = "qwen2_5_vl"
SINKS = "var(dims=(3,13,40),tau=2.0)"


@pytest.fixture
def pair(vllm_engine, family_engine):
    return vllm_engine(FAMILY), family_engine(FAMILY)


@pytest.mark.parametrize("metric", ["vhd", "mass"])
def test_maps_are_those_of_the_hf_engine(pair, metric):
    ours, hf = (
        head_sensitivity(engine, requests(3), metric, tokens=1, sinks=SINKS, resamples=10)
        for engine in pair
    )
    assert ours.values.shape == hf.values.shape
    np.testing.assert_allclose(ours.values, hf.values, atol=2e-3, rtol=5e-3)
    for name in ours.parts:  # what enters layer 0 is in no activations
        got, wanted = ours.parts[name].values[1:], hf.parts[name].values[1:]
        np.testing.assert_allclose(got, wanted, atol=2e-3, rtol=5e-3)


def test_ablation_is_refused(pair):
    with pytest.raises(hd.UnsupportedStrategy, match="use engine='hf', or the metrics vhd and"):
        head_sensitivity(pair[0], [(r, "yes") for r in requests(1)], "ablation")


@pytest.mark.parametrize("name", ["spin", "spin_map", "adhh", "adhh_map", "vhr_map"])
def test_strategies_are_those_of_the_hf_engine(pair, tmp_path, name):
    spec = {
        "spin": "spin(r=0.5)",
        "spin_map": "spin(r=0.5,map={vhd})",
        "adhh": "adhh(heads=(0,0,1,1,2,0,3,3),tau=0.05)",
        "adhh_map": "adhh(map={ablation},top=8,tau=0.05)",
        "vhr_map": "vhr(map={vhd})",
    }[name]
    _, hf = pair
    m = hf.model_info
    sampling = hd.Sampling(max_new_tokens=6, logprobs=3)
    made, plain = [], hf.generate(requests(3), "greedy", sampling)
    for engine in pair:
        paths = {}
        for metric in ("vhd", "ablation"):
            values = np.random.default_rng(1).normal(size=(m.num_layers, m.num_heads))
            grid = Grid(values, values, values)
            saved = HeadMap(metric, "m", engine.digest, 1, 1, grid)
            paths[metric] = saved.save(tmp_path / engine.name / f"{metric}.json")
        made.append(engine.generate(requests(3), spec.format(**paths), sampling))
    assert all(same(a, b) for a, b in zip(*made, strict=True))
    assert not all(same(a, b) for a, b in zip(made[1], plain, strict=True)), "it acts"
