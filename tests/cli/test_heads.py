"""``halludecode heads`` on the testbed with few pictures, and its complaints."""

import json

import pytest
from PIL import Image

from halludecode import HeadMap
from tests.support import families


@pytest.fixture
def heads(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HALLUDECODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HALLUDECODE_ARTIFACTS", str(tmp_path / "own"))
    return lambda *words: cli("heads", "--output", tmp_path / "out", *words)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, picture in zip("ab", families.pictures(), strict=False):
        picture.save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_maps_pictures_tables_and_strategies(heads, cli, tmp_path):
    made = heads("--model", "testbed", "--limit", "1", "--metric", "vhd", "--metric", "ablation")
    assert made.code == 0, made.err
    out = tmp_path / "out"
    names = {"vhd.json", "vhd.jsonl", "vhd.png", "vhd-inliers.png", "heads.json"}
    names |= {"ablation.json", "ablation.jsonl", "ablation.png"}
    assert {file.name for file in out.iterdir()} == names
    for title in ("vhd: highest 10 heads", "ablation: highest 10", "agreement between metrics"):
        assert title in made.out
    assert "vhd and ablation" in made.out
    assert "t_vhd" in made.out
    assert "%" in made.err, "progress goes to standard error"
    vhd, ablation = (HeadMap.load(out / f"{name}.json") for name in ("vhd", "ablation"))
    assert vhd.source == "testbed-dev-iid"
    assert ablation.settings["on"] == "answers"
    summary = json.loads((out / "heads.json").read_text())
    assert summary["agreement"] == [
        {"metrics": ["vhd", "ablation"], "spearman": pytest.approx(vhd.agreement(ablation))}
    ]
    assert summary["metrics"]["vhd"]["top"][0] == vhd.top(1)[0]._asdict()
    with Image.open(out / "vhd.png") as picture:
        assert picture.width == 900
    (picture,) = (tmp_path / "cache").rglob("images/*.png")
    for spec in (f"vhr(map={out}/vhd.json)", f"adhh(map={out}/ablation.json)"):
        answer = cli("generate", "--model", "testbed", "--image", picture, "--prompt",
                     "Please describe this image in detail.", "--strategy", spec,
                     "--max-new-tokens", "4", "--json")  # fmt: skip
        assert answer.code == 0, answer.err
        assert f"map={out}" in json.loads(answer.out)["strategy"]


def test_json_is_one_document_and_a_second_call_measures_nothing(heads, tmp_path):
    words = ("--model", "testbed", "--limit", "1", "--metric", "mass", "--json")
    first, second = heads(*words), heads(*words)
    assert first.code == 0, first.err
    assert json.loads(first.out) == json.loads(second.out)
    assert list(json.loads(first.out)) == ["model", "model_digest", "metrics", "agreement"]
    assert "/s]" not in second.err.replace("?sample/s]", ""), "no sample was read again"


def test_a_folder_of_pictures(heads, tmp_path, pictures, family_engine):
    model = family_engine("llava").model_id
    made = heads("--model", model, "--images", pictures, "--prompt", "What is this?", "--tokens", 2)
    assert made.code == 0, made.err
    saved = HeadMap.load(tmp_path / "out" / "vhd.json")
    assert (saved.samples, saved.pictures, saved.source) == (2, 2, "pictures")
    other = heads("--model", "testbed", "--images", pictures)
    assert other.code == 2
    assert "belongs to another model" in other.err
    assert other.err.splitlines()[-1].startswith("error: ")


def test_descriptions_are_read_on_their_object_words(heads, tmp_path):
    made = heads("--model", "testbed", "--limit", "1", "--task", "chair", "--tokens", "24")
    assert made.code == 0, made.err
    assert set(HeadMap.load(tmp_path / "out" / "vhd.json").numbers) > {"t_vhd"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metric", "heat"], "Unknown metric 'heat'; known: vhd, mass, ablation."),
        (["--sinks", "vcd"], "--sinks vcd: give var"),
        (["--images", "EMPTY"], "holds no pictures"),
        (["--images", "absent"], "absent: no such folder of pictures."),
        (["--images", "BROKEN"], "broken.png: the picture cannot be decoded (not a picture)."),
        (["--images", "GOOD", "--metric", "ablation"], "--metric ablation needs right answers"),
        (["--task", "vqa"], "Unknown task 'vqa'. Known: "),
        (["--prompt", "Why?"], "--prompt goes with --images alone"),
        (["--data", "absent/folder/here"], "no such folder, and not a hub id"),
        (["--prompt-preset", "none"], "No prompt preset 'none'"),
        (["--limit", "0"], "heads --help"),
    ],
)
def test_bad_input_is_one_line(heads, engines, tmp_path, pictures, words, told):
    (tmp_path / "EMPTY").mkdir()
    broken = tmp_path / "BROKEN"
    broken.mkdir()
    (broken / "broken.png").write_text("no picture")
    places = {"EMPTY": tmp_path / "EMPTY", "BROKEN": broken, "GOOD": pictures}
    made = heads("--model", "testbed", *(places.get(word, word) for word in words))
    assert made.code == 2
    assert made.out == ""
    assert told in made.err
    assert made.err.count("\n") == 1
    assert engines == [], "no model was loaded for it"


def test_other_models_need_pictures(heads, engines):
    made = heads("--model", "some/model")
    assert made.code == 2
    assert "No pictures for model some/model: give --images DIR" in made.err
    assert engines == []


def test_an_output_that_is_a_file_is_told(heads, tmp_path):
    (tmp_path / "out").write_text("")
    made = heads("--model", "testbed", "--limit", "1")
    assert made.code == 2
    assert f"{tmp_path / 'out'}: cannot be written" in made.err.splitlines()[-1]
