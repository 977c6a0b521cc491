"""vLLM engines for tests: in this process, one per configuration and session."""

from __future__ import annotations

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling a helper takes 10 s

import warnings
from pathlib import Path

import pytest

import halludecode as hd
from halludecode.calibration.store import ArtifactStore
from tests.contract.conftest import pytest_runtest_logreport  # noqa: F401  (for `make record`)
from tests.support import families, specs

HERE = Path(__file__).parent
# Small caches and budgets: "cut" chunks every prompt with a picture, "whole" holds two of them.
SETTINGS = {
    "": {"max_num_seqs": 48, "max_num_batched_tokens": 4096},
    "cut": {"max_num_seqs": 12, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 24},
    "whole": {"max_num_seqs": 12, "max_num_batched_tokens": 400, "num_gpu_blocks_override": 30},
}
ENGINES: dict[tuple[str, str], object] = {}


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory):
    """(name, tight) -> engine; "testbed" or a family; tight ones have to preempt and chunk."""

    def get(name: str, *, tight: str = ""):
        if (name, tight) not in ENGINES:
            given = name
            if name != "testbed":
                given = str(families.family_path(name, tmp_path_factory))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vLLM's own
                ENGINES[name, tight] = hd.load(
                    given,
                    engine="vllm",
                    artifacts=tmp_path_factory.getbasetemp() / "artifacts",
                    block_size=32,
                    kv_cache_memory_bytes=64 << 20,
                    max_model_len=512 if tight else 1024,
                    limit_mm_per_prompt={"image": 2},
                    **SETTINGS[tight],
                )
        return ENGINES[name, tight]

    return get


@pytest.fixture
def supplied(tmp_path):
    """(ours, HF's) -> the same, with hand-made artifacts where strategies need one, until the end.

    What is made for one is found by the other: they agree on the model's digest.
    """
    changed = []

    def supply(ours, hf):
        changed.extend((engine, engine.calibrator.store) for engine in (ours, hf))
        specs.supplied(hf, tmp_path)
        ours.calibrator.store = ArtifactStore(tmp_path)
        return ours, hf

    yield supply
    for engine, store in changed:
        engine.calibrator.store = store
        engine.calibrator.forget()
        engine.forget_plans()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last of all: vLLM runs in this process and leaves it with the threads it bound."""
    items.sort(key=lambda item: HERE in item.path.parents)
