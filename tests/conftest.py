"""Shared engines: one per family and session, tiny random weights through the real processors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HALLUDECODE_ARTIFACTS", "/nonexistent")  # no artifacts of the machine's own

import hypothesis
import pytest

import halludecode as hd
from tests.support import families, specs
from tests.support.vllm import MET

# How long an example takes on a loaded machine is no promise of the code, nor is drawing one.
hypothesis.settings.register_profile(
    "halludecode", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("halludecode")

ENGINES: dict[str, object] = {}
# Folders whose files share what is dear to start (a vLLM engine per configuration, a server).
TOGETHER = ("tests/engines/vllm/", "tests/serve/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``-n``, a file's tests stay in one process, and those of such a folder too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is asked of a family much like another's is left to `make test-all`."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if any(isinstance(value, str) and value in specs.RARE for value in params.values()):
            item.add_marker(pytest.mark.full)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs a part of the tests hands on what it let through."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["met"] = dict(MET)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """The process that prints adds up what the others let through."""
    MET.update(getattr(node, "workeroutput", {}).get("met", {}))


def pytest_terminal_summary(terminalreporter) -> None:
    """What was let through in comparing engines."""
    if MET["answers"]:
        told = ", ".join(f"{count} {what}" for what, count in MET.items())
        terminalreporter.write_line(f"Answers compared up to ties: {told}")


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
