"""Sinks: the definition on hand-made residuals, the report on models, the command."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from PIL import Image

import halludecode as hd
from halludecode import testbed
from halludecode.analysis.sinks import sinks
from halludecode.core.activations import Activations
from halludecode.core.errors import InvalidData, InvalidParameter, InvalidRequest
from halludecode.core.plan import typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.sinks import FAR_MORE, survey, threshold
from tests.support import families

D, L, T, FIRST_IMAGE, N = 64, 6, 24, 2, 20  # image tokens 2..21; 18 of them lie apart
TAU = 5.0  # phi is at most 8


def model_info():
    from dataclasses import replace

    return replace(typical_model_info(), hidden_size=D, num_layers=L)


def prompt(words, picture=True):
    image = Picture.of(Image.new("RGB", (4, 4), (len(words), 0, 0)))
    return Prompt((Turn("user", (*([image] if picture else []), words)),))


def model_with(*, first=(), tokens=(), dims=(), share=0.0):
    """A model whose first token and some image tokens carry dims and take a share of attention.

    ``first`` are dimensions of the first token, ``tokens`` image tokens (from 0) that carry
    ``dims`` and together take ``share`` of the image attention.
    """

    def activations(wanted):
        pictured = bool(wanted.prompt.pictures)
        rng = torch.Generator().manual_seed(len(wanted.prompt.question))
        x = torch.rand(len(wanted.hidden), T, D, generator=rng) + 0.5
        mask = torch.zeros(T, dtype=torch.bool)
        mask[FIRST_IMAGE : FIRST_IMAGE + N] = pictured
        for j in first:
            x[:, 0, j] = 40 + j
        weights = torch.full((N,), (1 - share) / (N - len(tokens)) if len(tokens) < N else 1 / N)
        if pictured:
            for token in tokens:
                x[:, FIRST_IMAGE + token, list(dims)] = 40
                weights[token] = share / len(tokens)
        image = (0.5 * weights).expand(len(wanted.image), 2, N) if wanted.image else None
        return Activations(hidden=x, image=image, image_mask=mask)

    return activations


PROMPTS = [prompt("a" * n) for n in range(1, 5)] + [prompt("b" * n, picture=False) for n in (1, 2)]


def found(**model):
    return survey(model_with(**model), PROMPTS, model_info(), TAU)


def test_few_tokens_that_share_the_first_tokens_dimensions_and_take_the_attention():
    made = found(first=(3, 17), tokens=(4, 9), dims=(3, 17), share=0.4)
    assert made.dims == (3, 17)
    assert (made.samples, made.pictures) == (6, 4)
    assert made.layers == (1, 2, 3, 4, 5) and made.middle == (2, 3, 4)
    assert made.flagged.tolist() == pytest.approx([2 / N] * 5)
    assert made.taken.tolist() == pytest.approx([0.4] * 5)
    assert made.verdict == (
        "sinks: dims {3, 17}, 10.0% of visual tokens take 40% of image attention (phi >= 5, "
        "layers 2 to 4)"
    )
    assert (made.phi[:, :2, 1] > TAU).all() and (made.phi[:, 2, 1] < TAU).all()
    mean = made.phi[:, 1, 0]
    assert (mean < TAU).all() and (mean > made.phi[:, 2, 0]).all()


def test_sinks_that_only_image_tokens_carry_are_found():
    assert found(tokens=(4,), dims=(9,), share=0.3).dims == (9,)


def test_a_dimension_of_nearly_all_image_tokens_marks_pictures():
    made = found(first=(7,), tokens=range(18), dims=(7,), share=0.99)
    assert made.dims == ()
    assert made.refused.keys() == {7}
    assert made.verdict.startswith("no sinks: ")
    assert "dimension 7 is massive in 90% of visual tokens: it marks pictures" in made.verdict


def test_massive_tokens_that_nobody_attends_to_are_no_sinks():
    below = (FAR_MORE - 0.5) * 2 / N
    made = found(first=(7,), tokens=(1, 2), dims=(7,), share=below)
    assert made.dims == ()
    assert f"which take {below:.1%} of image attention" in made.verdict
    assert found(tokens=(1, 2), dims=(7,), share=(FAR_MORE + 0.5) * 2 / N).dims == (7,)


def test_the_first_token_alone():
    made = found(first=(5,))
    assert made.dims == (5,)
    assert made.verdict.startswith("text sinks only: dims {5} at the first token; no visual token")
    words = survey(model_with(first=(5,)), PROMPTS[-2:], model_info(), TAU)
    assert words.dims == (5,) and "no sample has a picture" in words.verdict


def test_nothing_is_massive():
    made = found()
    assert made.dims == () and made.refused == {}
    assert made.verdict.startswith("no sinks: no dimension meets their definition at tau = 5")
    assert made.phi.shape == (5, 3, 2) and (made.phi < TAU).all()


def test_at_most_three_dimensions_the_largest_first():
    made = survey(model_with(first=(1, 2, 3, 4)), PROMPTS, model_info(), 3.0)
    assert made.dims == (2, 3, 4)


def test_what_only_one_prompt_shows_is_no_constant_of_the_model():
    steady, rare = model_with(), model_with(first=(8,))
    made = survey(
        lambda w: (rare if w.prompt is PROMPTS[0] else steady)(w), PROMPTS, model_info(), TAU
    )
    assert made.dims == ()


def test_the_threshold_scales_with_its_bound():
    assert threshold(model_info()) == pytest.approx(20 * (D / 4096) ** 0.5)
    assert threshold(model_info(), 3.5) == 3.5


def test_a_prompt_is_forgotten_before_the_next_is_made():
    alive, most = weakref.WeakSet(), 0

    class Fresh(list):
        def __iter__(self):
            for n in range(1, 5):
                made = prompt("c" * n)
                alive.add(made.pictures[0])
                yield made

    model = model_with(first=(3,), tokens=(4,), dims=(3,), share=0.5)

    def activations(wanted):
        nonlocal most
        gc.collect()
        most = max(most, len(alive))
        return model(wanted)

    assert survey(activations, Fresh(), model_info(), TAU).samples == 4
    assert most <= 2


# On models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALLUDECODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield hd.load(testbed.PLANTED)


@pytest.fixture(scope="module")
def report(planted):
    pictures = families.pictures()
    asked = [hd.Request("Describe the image.", [picture]) for picture in pictures[:3]]
    return sinks(planted, [*asked, (hd.Request("Why?"), None)], source="three pictures")


def test_the_planted_model_has_the_sinks_that_were_planted(report, planted):
    from safetensors.torch import load_file

    from halludecode.testbed.planted import Planting, positions

    source = testbed.model_path()
    config = json.loads((source / "config.json").read_text("utf-8"))
    edit = Planting(load_file(source / "model.safetensors"), config)
    places = positions(edit.side)
    assert set(edit.dims) <= set(report.dims)
    assert report.flagged == pytest.approx(len(places) / edit.side**2)
    assert report.taken > 0.2
    assert report.verdict.startswith("sinks: dims {")
    assert report.model == "testbed-planted" and report.source == "4 samples of three pictures"
    flagged = report.example.sinks.reshape(-1).nonzero()[0].tolist()
    assert flagged == sorted(places)
    assert report.example.attention.sum() == pytest.approx(1, abs=1e-4)
    assert report.example.attention[report.example.sinks].sum() > 0.2


def test_its_attention_share_is_that_of_the_plain_model(report, planted):
    """Against the weights transformers reports, for one picture and one layer."""
    request = hd.Request("Describe the image.", [families.pictures()[0]])
    one = sinks(planted, [request])
    row = planted.rows(request)["main"]
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        testbed.model_path(testbed.PLANTED), dtype="float32", attn_implementation="eager"
    )
    with torch.no_grad():
        made = model(
            input_ids=row.input_ids[None], pixel_values=row.pixel_values, output_attentions=True
        )
    image = row.input_ids == model.config.image_token_id
    for at, layer in enumerate(one.survey.layers):
        weights = made.attentions[layer][0, :, -1][:, image].sum(0)
        share = weights[one.example.sinks.reshape(-1)].sum() / weights.sum()
        assert float(one.survey.taken[at]) == pytest.approx(float(share), abs=1e-4)


def test_any_family_is_looked_at(family_engine):
    for name in ("qwen2_5_vl", "instructblip"):
        made = sinks(family_engine(name))
        assert made.source == "8 built-in prompts"
        assert (made.survey.samples, made.survey.pictures) == (8, 4)
        assert (
            len(made.table())
            == made.survey.phi.shape[0]
            == family_engine(name).model_info.num_layers - 1
        )
        assert (made.example is None) == (name == "instructblip"), "queries form no raster"
        made.plot()


def test_the_report_is_saved_as_strict_json_and_a_picture(report, tmp_path):
    numbers, picture = report.save(tmp_path / "new")
    told = json.loads(numbers.read_text("utf-8"), parse_constant=pytest.fail)
    assert told["dims"] == list(report.dims) and told["verdict"] == report.verdict
    assert [row["layer"] for row in told["layers"]] == list(report.survey.layers)
    with Image.open(picture) as image:
        assert image.width == 900
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidData, match="cannot be written"):
        report.save(tmp_path / "file" / "below")


def test_bad_input_is_one_sentence(planted):
    for tau in (0, -1, float("nan")):
        with pytest.raises(InvalidParameter, match="must be above 0"):
            sinks(planted, tau=tau)
    with pytest.raises(InvalidParameter, match="give at least one request"):
        sinks(planted, [])
    with pytest.raises(InvalidRequest, match="cannot show a model's insides"):
        sinks(object())


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, planted, monkeypatch, tmp_path):
    from halludecode.cli import main

    monkeypatch.setattr(hd, "load", lambda *_, **__: planted, raising=False)
    picture = tmp_path / "one.png"
    families.pictures()[0].save(picture)
    asked = {"question_id": 1, "image": "one.png", "text": "Is there a dog?", "label": "no"}
    (tmp_path / "pope.jsonl").write_text(json.dumps(asked) + "\n")
    files = ("--images", tmp_path, "--annotations", tmp_path / "pope.jsonl")

    def run(*words):
        words = ("sinks", "--model", "testbed-planted", "--output", tmp_path / "out", *words)
        code = main([str(word) for word in (*words, *(() if "--data" in words else files))])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_tells_saves_and_says_how_to_keep_them(command, tmp_path):
    code, out, err = command()
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("sinks: dims {")
    assert lines[1] == "from 1 samples of pope.jsonl"
    assert {line.split("/")[-1] for line in lines[2:4]} == {"sinks.json", "sinks.png"}
    assert lines[4] == "keep them for var: halludecode calibrate --model testbed-planted var"
    assert all((tmp_path / "out" / name).is_file() for name in ("sinks.json", "sinks.png"))


def test_json_is_one_document(command):
    code, out, _ = command("--json")
    told = json.loads(out)
    assert code == 0 and told["model"] == "testbed-planted" and len(told["saved"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tau", "0"], "--tau 0: it must be above 0"),
        (["--limit", "0"], "sinks --help"),
        (["--data", "absent/folder/here"], "no such folder"),
    ],
)
def test_wrong_usage_is_one_line(command, words, told):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1
