"""Names are found in files as an import would find them."""

from __future__ import annotations

import sys

import pytest

from halludecode.engines.vllm.compat import vllm_api
from halludecode.engines.vllm.compat.sources import Sources

FILES = {
    "pack/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from pack.deep import Base as Offered\nfrom . import deep\n",
    "pack/deep/__init__.py": "from .core import *\nfrom ..side import helper, absent\n",
    "pack/deep/core.py": """
from abc import ABC, abstractmethod
from elsewhere import Foreign

try:
    import fast
except ImportError:
    fast = None

class Base(ABC):
    limit: int
    def __init__(self):
        self.kept = 1
    @abstractmethod
    def run(self, step, *, deep): ...
    @abstractmethod
    def stop(self): ...

class Half(Base):
    def run(self, step, more): ...
""",
    "pack/side.py": "from pack.deep import Half\n\ndef helper(): ...\n\n"
    "class Whole(Half[int]):\n    size = 1\n    async def stop(self): ...\n",
}


@pytest.fixture
def sources(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield Sources(tmp_path)
    assert "pack" not in sys.modules


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pack", "Offered"),  # for a type checker, as lazy packages say what they have
        ("pack", "deep"),  # a module
        ("pack", "side"),
        ("pack.deep", "Half"),  # starred
        ("pack.deep", "helper"),  # relative, from above
        ("pack.deep.core", "Foreign"),  # not of these packages
        ("pack.deep.core", "fast"),
        ("pack.side", "Half"),
    ],
)
def test_names_are_there(sources, module, name):
    assert sources.has(module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [("pack.deep", "absent"), ("pack.none", "x"), ("pack.side", "Base"), ("pack.deep", "nothing")],
)
def test_names_are_gone(sources, module, name):
    assert not sources.has(module, name)


def test_members_parameters_and_abstract_methods_are_inherited(sources):
    members = ("limit", "kept", "run", "stop", "size", "else")
    found = [name for name in members if sources.has_member("pack.side", "Whole", name)]
    assert found == ["limit", "kept", "run", "stop", "size"]
    assert sources.parameters("pack.side", "Whole", "run") == ["self", "step", "more"]
    assert sources.parameters("pack.deep", "Base", "run") == ["self", "step", "deep"]
    assert sources.parameters("pack.deep", "Base", "size") is None
    assert sources.abstract("pack.deep", "Half") == ["stop"]
    assert sources.abstract("pack.side", "Whole") == []
    assert sources.abstract("pack.deep", "helper") == []


def test_files_and_imports_of_this_vllm_say_the_same():
    files, imports = vllm_api.installed(), vllm_api.Imported()
    assert vllm_api.missing(asked=files) == vllm_api.missing() == []
    for (module, name, method), _ in vllm_api.TAKES.items():
        assert files.parameters(module, name, method) == imports.parameters(module, name, method)
    for each in ("no_such_method", "__init__"):
        for asked in (files, imports):
            has = asked.has_member("vllm.v1.core.sched.scheduler", "Scheduler", each)
            assert has is (each == "__init__")
