"""``generate --explain``: the page, the numbers, and what is refused before a model is loaded."""

from __future__ import annotations

import json

import pytest

import halludecode
from halludecode.testbed import dataset

BASE = ("generate", "--model", "testbed", "--prompt", "Please describe this image in detail.")


@pytest.fixture(scope="module")
def picture():
    return min((dataset("testbed-broken", 60) / "images").iterdir())


@pytest.fixture
def real(monkeypatch, testbed):
    """Commands get the embedded model that the other tests have loaded."""
    monkeypatch.setattr(halludecode, "load", lambda *a, **k: testbed, raising=False)


@pytest.mark.parametrize("strategy", ["greedy", "vcd"])
def test_the_page_is_written_beside_the_same_answer(cli, real, tmp_path, picture, strategy):
    out = tmp_path / "out.html"
    asked = (*BASE, "--image", picture, "--strategy", strategy)
    plain, told = cli(*asked), cli(*asked, "--explain", out)
    assert told.code == 0
    assert told.out == plain.out
    assert told.err == f"wrote {out}\n"
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "data:image/png;base64," in text
    assert text.count("<button") >= len(plain.out.split()) - 8, "a word or an object each"
    assert f"strategy <strong>{strategy}" in text


def test_json_has_the_numbers_of_every_answer(cli, real, tmp_path, picture):
    how = ("--n", "2", "--temperature", "1", "--seed", "1", "--max-new-tokens", "12", "--json")
    out = tmp_path / "out.html"
    result = cli(*BASE, "--image", picture, "--image", picture, "--explain", out, *how)
    document = json.loads(result.out)
    assert len(document["choices"]) == 2
    for choice in (document, *document["choices"]):
        tokens = choice["explanation"]["tokens"]
        assert [token["token_id"] for token in tokens] == choice["token_ids"]
        assert "".join(token["text"] for token in tokens) == choice["text"]
        assert {"grounding", "entropy", "mass"} < tokens[0].keys()
        assert "maps" not in tokens[0]
    text = out.read_text(encoding="utf-8")
    assert "Answer 2" in text
    assert text.count("<canvas") == 2


def test_bad_input_is_reported_before_a_model_is_loaded(cli, engines, tmp_path):
    result = cli(*BASE, "--explain", tmp_path / "a.html")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: --explain shows what an answer owes to its pictures")
    for target, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.html", "no folder")):
        result = cli(*BASE, "--image", "a.png", "--explain", target)
        assert result.code == 2
        assert words in result.err
        assert result.err.count("\n") == 1
    assert engines == []


def test_a_search_cannot_be_explained(cli, real, tmp_path, picture):
    result = cli(*BASE, "--image", picture, "--strategy", "opera", "--explain", tmp_path / "a.html")
    assert result.code == 2
    assert "cannot be explained" in result.err
    assert not (tmp_path / "a.html").exists()
