"""Shared engines: one per family and session, tiny random weights through the real processors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HALLUDECODE_ARTIFACTS", "/nonexistent")  # no artifacts of the machine's own

import hypothesis
import pytest

import halludecode as hd
from tests.support import families

# How long an example takes on a loaded machine is no promise of the code, nor is drawing one.
hypothesis.settings.register_profile(
    "halludecode", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("halludecode")

ENGINES: dict[str, object] = {}


@pytest.fixture(scope="session")
def family_engine(tmp_path_factory):
    """Name of a family -> its engine, loaded once."""

    def get(name: str):
        if name not in ENGINES:
            path = families.family_path(name, tmp_path_factory)
            ENGINES[name] = hd.load(str(path), batch_size=8)
        return ENGINES[name]

    return get


@pytest.fixture(scope="session")
def testbed():
    """The embedded model."""
    if "testbed" not in ENGINES:
        ENGINES["testbed"] = hd.load("testbed", batch_size=32)
    return ENGINES["testbed"]
