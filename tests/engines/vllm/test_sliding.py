"""Attention of layers that slide: what is edited sees the keys that the kernel sees."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest

import halludecode as hd
from tests.support import families
from tests.support.vllm import ACTIVE, requests, same

FEW = hd.Sampling(max_new_tokens=40, min_new_tokens=39, logprobs=3)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A model whose every layer sees 48 keys, blocks of KV cache holding 32, on both engines."""
    folder = tmp_path_factory.mktemp("sliding") / "model"
    shutil.copytree(families.family_path("mistral3", tmp_path_factory), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"sliding_window": 48}
    (folder / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        ours = hd.load(
            str(folder),
            engine="vllm",
            block_size=32,
            kv_cache_memory_bytes=8 << 20,
            max_model_len=512,
            max_num_seqs=8,
            max_num_batched_tokens=128,
        )
    layers = ours.loaded.vllm_config.compilation_config.static_forward_context.values()
    assert 48 in {getattr(layer, "sliding_window", None) for layer in layers}
    return ours, hd.load(str(folder))


@pytest.mark.full
@pytest.mark.parametrize("spec", ["greedy", "vcd", "pai", ACTIVE["var"], ACTIVE["ilvad"]])
def test_edits_see_a_window_as_the_kernel_does(engines, spec):
    made, wanted = (engine.generate(requests(3), spec, FEW) for engine in engines)
    for one, want in zip(made, wanted, strict=True):
        assert same(one, want)
