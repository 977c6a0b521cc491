"""`doctor --family` says what a family can do before anything is loaded."""

from __future__ import annotations

import json

import pytest

from halludecode.cli import family as cli_family
from halludecode.cli import main
from halludecode.models.families import FAMILIES
from tests.support import families


@pytest.fixture(autouse=True)
def vllm_is_not_asked(monkeypatch):
    monkeypatch.setattr(cli_family, "_why_not_vllm", lambda name: f"asked of {name}")


def test_switches_refusals_and_engines_are_told(capsys):
    assert main(["doctor", "--family", "qwen3_vl"]) == 0
    told = capsys.readouterr().out
    assert "mrope = True" in told and "damro: its picture also enters the first layers" in told
    assert "engine vllm: asked of qwen3_vl" in told


def test_a_folder_is_read(capsys, tmp_path_factory):
    path = families.family_path("aya_vision", tmp_path_factory)
    assert main(["doctor", "--json", "--family", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "aya_vision"
    assert found["refused"].keys() == {"cca", "edvt", "imccd"}, "what moves positions"
    assert found["switches"]["patches"] == "square_patches"


def test_an_unknown_family_is_one_sentence(capsys):
    assert main(["doctor", "--family", "qwen9_vl"]) == 2
    assert "No model family is called 'qwen9_vl'; known: llava," in capsys.readouterr().err


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_can_be_told(name):
    assert cli_family.describe(cli_family.report(name))[0].startswith(f"{name}: ")
