"""The planted model: the edit on any checkpoint of the family, and what `var` does to it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import halludecode as hd
from halludecode import testbed
from halludecode.core.attention_block import AttentionBlock
from halludecode.core.errors import InvalidData, InvalidModel
from halludecode.testbed import planted
from tests.support import naive

QUESTIONS = ("Is there a dog in the image?", "What color is the car?", "Describe the image.")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own; `hd.load` and the command line use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALLUDECODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def engine(cache):
    return hd.load(testbed.PLANTED, batch_size=8)


@pytest.fixture(scope="module")
def requests(folders):
    pictures = sorted((folders["iid"] / "images").iterdir())
    return [hd.Request(question, [picture]) for question in QUESTIONS for picture in pictures[:2]]


# The edit on any checkpoint of the family --------------------------------------------------------

SHAPES = {
    "wide, deep, grouped": {"D": 128, "layers": 6, "heads": 8, "groups": 2, "d": 16, "side": 8},
    "narrow, shallow": {"D": 64, "layers": 4, "heads": 2, "groups": 2, "d": 32, "side": 12},
}


def tiny(D, layers, heads, groups, d, side):
    """A random checkpoint of the testbed's architecture, in bfloat16."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {
        **{"model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 4 * side, "patch_size": 4},
    }
    text = {
        **{"model_type": "llama", "vocab_size": 20, "hidden_size": D, "intermediate_size": 2 * D},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": d},
        **{"num_key_value_heads": groups, "bos_token_id": 1, "eos_token_id": 2},
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(torch.bfloat16)


def edit(model):
    """The same checkpoint with sinks."""
    tensors, config = planted.plant(model.state_dict(), model.config.to_dict())
    edited = type(model)(type(model.config).from_dict(config))
    edited.load_state_dict(tensors)
    return edited


def look(model, shape):
    """Hidden states and attentions of one prompt: begin, word, picture, three words."""
    count = shape["side"] ** 2
    ids = torch.tensor([[1, 7, *[4] * count, 8, 9, 10]])
    pixels = torch.randn(
        1, 3, 4 * shape["side"], 4 * shape["side"], generator=torch.Generator().manual_seed(1)
    )
    model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = model.float()(
            input_ids=ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True
        )
    return ids[0] == 4, seen


@pytest.mark.parametrize("name", SHAPES)
def test_any_width_depth_and_grouping_gets_rare_tokens_that_take_the_attention(name):
    shape = SHAPES[name]
    model = tiny(**shape)
    dims = list(planted.Planting(model.state_dict(), model.config.to_dict()).dims)
    image, seen = look(edit(model), shape)
    threshold = 20 * math.sqrt(shape["D"] / 4096)
    places = planted.positions(shape["side"])
    assert 0.01 <= len(places) / shape["side"] ** 2 <= 0.05
    for layer in range(2, shape["layers"]):
        x = seen.hidden_states[layer][0]
        phi = (x.abs() / x.square().mean(-1, keepdim=True).sqrt())[:, dims]
        sinks = phi.amax(-1) >= threshold
        assert sinks[image].nonzero().flatten().tolist() == sorted(places)
        assert sinks.nonzero().flatten()[0] == 0, "the begin token is one too"
        assert not sinks[~image][1:].any()
        assert (phi[sinks].amax(-1) > 0.8 * math.sqrt(shape["D"])).all()
        assert (phi[~sinks] < 0.1).all(), "nothing else writes there"
        weights = seen.attentions[layer][0][:, -1]  # random heads attend evenly: as derived
        share = weights[:, image & sinks].sum(-1) / weights[:, image].sum(-1)
        assert share.tolist() == pytest.approx([planted.MASS] * shape["heads"], abs=0.03)


def test_before_the_first_layer_of_the_edit_attention_is_as_it_was():
    shape = SHAPES["wide, deep, grouped"]
    model = tiny(**shape)
    image, before = look(model, shape)
    _, after = look(edit(tiny(**shape)), shape)
    plain = torch.ones(len(image), dtype=torch.bool)
    plain[[0, *(2 + p for p in planted.positions(shape["side"]))]] = False
    for layer in range(planted.FIRST):
        w, v = before.attentions[layer][0][..., plain], after.attentions[layer][0][..., plain]
        assert (w - v).abs().max() < 0.15 * w.max(), layer


def test_the_edit_is_the_same_every_time_and_leaves_its_source_alone():
    model = tiny(**SHAPES["narrow, shallow"])
    source = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    kept = json.dumps(config, default=str)
    first, about = planted.plant(source, config)
    second, _ = planted.plant(dict(reversed(source.items())), config)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(source[name], value) for name, value in model.state_dict().items())
    assert json.dumps(config, default=str) == kept
    assert about["text_config"]["attention_bias"] is True
    assert {value.dtype for value in first.values()} == {torch.bfloat16}


def test_other_architectures_are_refused():
    model = tiny(**SHAPES["narrow, shallow"])
    config = model.config.to_dict()
    config["text_config"]["model_type"] = "qwen2"
    with pytest.raises(InvalidModel, match="LLaVA with Llama and CLIP"):
        planted.plant(model.state_dict(), config)


@pytest.mark.parametrize("side", [4, 10, 24, 37])
def test_marked_patches_are_few_and_spread_along_the_rim(side):
    places = planted.positions(side)
    assert len(set(places)) == len(places) == max(1, round(0.03 * side * side))
    assert all({p // side, p % side} & {0, side - 1} for p in places)
    assert len(places) < 4 or (min(places) < side and max(places) >= side * (side - 1))


# The model of this name --------------------------------------------------------------------------


def test_it_is_made_once_and_kept(cache):
    folder = testbed.model_path(testbed.PLANTED)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert testbed.model_path(testbed.PLANTED) == folder != testbed.model_path()
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    plain = load_file(testbed.model_path() / "model.safetensors")
    edited = load_file(folder / "model.safetensors")
    assert plain.keys() <= edited.keys()
    assert any(not torch.equal(plain[name], edited[name]) for name in plain)
    assert not list(folder.parent.glob(".making-*"))


def test_a_cache_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HALLUDECODE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InvalidData, match="set HALLUDECODE_CACHE to a folder that can"):
        hd.load(testbed.PLANTED)


def test_it_says_that_it_is_planted(engine):
    assert engine.describe()["model"] == "testbed-planted"
    card = testbed.card(testbed.PLANTED)
    assert "did not learn them" in card
    assert str(planted.Planting(_weights(), _config()).dims) in card
    assert testbed.card() != card


def _places():
    vision = _config()["vision_config"]
    return planted.positions(vision["image_size"] // vision["patch_size"])


def test_info_shows_its_card(cache, capsys):
    from halludecode.cli import main

    assert main(["testbed", "info", "testbed-planted"]) == 0
    assert capsys.readouterr().out.strip() == testbed.card(testbed.PLANTED).strip()
    assert main(["testbed", "info", "testbed-planted", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["planted"] is True
    assert told["model"] == str(testbed.model_path(testbed.PLANTED))
    assert main(["testbed", "info", "testbed-grown"]) == 2
    assert "there are testbed, testbed-planted" in capsys.readouterr().err


def _weights():
    return load_file(testbed.model_path() / "model.safetensors")


def _config():
    return json.loads((testbed.model_path() / "config.json").read_text("utf-8"))


def test_it_still_answers_as_the_embedded_model_does(engine, testbed, folders):
    lines = (folders["iid"] / "pope/random.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line) for line in lines[:64]]
    words = hd.Sampling(max_new_tokens=1)
    pictures = folders["iid"] / "images"
    told = " Please answer yes or no."
    requests = [hd.Request(q["text"] + told, [pictures / q["image"]]) for q in asked]
    plain, edited = (e.generate(requests, "greedy", words) for e in (testbed, engine))
    same = sum(a.text == b.text for a, b in zip(plain, edited, strict=True))
    assert same >= 0.85 * len(requests)


# What var does there -----------------------------------------------------------------------------


def test_var_finds_the_planted_dimensions_and_edits(engine, testbed, requests):
    plan = engine.plan("var")
    (told,) = plan.describe()["artifacts"].values()
    assert told["notes"][0].startswith("sinks: dims {")
    dims = planted.Planting(_weights(), _config()).dims
    assert set(dims) <= set(plan.parts[0].model_info.artifact["dims"].tolist())
    sampling = hd.Sampling(max_new_tokens=4, logprobs=1)
    outputs = engine.generate(requests, "var", sampling)
    assert [output.warnings for output in outputs] == [()] * len(requests)
    plain = engine.generate(requests, "greedy", sampling)
    moved = [
        abs(a.logprobs[0].logprob - b.logprobs[0].logprob)
        for a, b in zip(outputs, plain, strict=True)
    ]
    assert max(moved) > 1e-3


def test_var_moves_the_mass_that_the_derivation_says(engine, requests, monkeypatch):
    """Layer 2, token by token, against the attention that transformers itself reports."""
    p, rho, least = 0.6, 0.5, 0.2
    seen = []
    output = AttentionBlock.output

    def watched(self, edited=None):
        seen.append((self.keys.position[0].tolist(), (self.weights() * self.gains)[0]))
        return output(self, edited)

    monkeypatch.setattr(AttentionBlock, "output", watched)
    chosen, taken = 0, []
    for request in requests[:3]:
        seen.clear()
        row = engine.rows(request)["main"]
        engine.generate(request, f"var(p={p},rho={rho},min_mass={least})", hd.Sampling(1))
        plain, image, sinks = _plain(engine, row)
        text = range(int(image.nonzero()[-1]) + 1, len(image))
        first = dict(zip(seen[0][0], seen[0][1].transpose(0, 1), strict=True))
        shares = plain[:, text][..., image & sinks].sum(-1) / plain[:, text][..., image].sum(-1)
        taken.append(float(shares.mean()))
        for at in text:
            for before, after in zip(plain[:, at], first[at], strict=True):
                chosen += _as_derived(before, after, image, sinks, (p, rho, least))
    heads = engine.model_info.num_heads
    assert chosen >= 3 * len(text) * heads / 3, "a third of the heads look at the image"
    assert min(taken) > 0.2, "3 % of the image tokens take a large part of its attention"


def _plain(engine, row):
    """Attention [H, Q, N] of layer 2 as transformers reports it, image tokens, sinks."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        testbed.model_path(testbed.PLANTED), dtype="float32", attn_implementation="eager"
    )
    with torch.no_grad():
        made = model(
            input_ids=row.input_ids[None],
            pixel_values=row.pixel_values,
            output_attentions=True,
            output_hidden_states=True,
        )
    x = made.hidden_states[2][0]
    phi = x.abs() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    dims = list(planted.Planting(_weights(), _config()).dims)
    sinks = phi[:, dims].amax(-1) >= 20 * math.sqrt(x.shape[-1] / 4096)
    return made.attentions[2][0], row.input_ids == model.config.image_token_id, sinks


def _as_derived(before, after, image, sinks, how):
    """One head, one row: 1 if it was chosen."""
    p, rho, least = how
    visual, fresh = image & sinks, image & ~sinks
    assert visual.sum() == len(_places()) and sinks[0]
    mass, rest, stuck = (float(before[mask].sum()) for mask in (image, fresh, sinks))
    if mass < least or rest < rho * mass:
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
        return 0
    expected = before.clone()
    expected[sinks] *= 1 - p
    expected[fresh] *= 1 + p * stuck / rest
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    assert float(after[sinks].sum()) == pytest.approx((1 - p) * stuck, rel=1e-3)
    assert float(after.sum()) == pytest.approx(1.0, abs=1e-5)
    return 1


def test_var_gives_the_tokens_of_the_slow_form(engine, requests):
    dims = planted.Planting(_weights(), _config()).dims
    tau = 20 * math.sqrt(engine.model_info.hidden_size / 4096)
    for request in requests[-2:]:
        row = engine.rows(request)["main"]
        expected = naive.var(
            engine.model, engine.processor, row.prompt, [row.picture()], 4, dims=dims, tau=tau
        )
        made = engine.generate(request, f"var(dims={dims})", hd.Sampling(4, logprobs=1))[0]
        assert list(made.token_ids) == expected.ids[: len(made.token_ids)]
        for got, scores in zip(made.logprobs, expected.scores, strict=False):
            assert got.logprob == pytest.approx(
                float(scores.log_softmax(-1)[got.token_id]), abs=2e-4
            )


def test_evaluation_knows_its_data_and_words_and_names_it(engine, folders, tmp_path):
    from halludecode.evals.presets import preset_for
    from halludecode.evals.runner.run import _sources

    assert _sources((), None, None, testbed.PLANTED) == ["testbed-iid"]
    assert preset_for(None, testbed.PLANTED, ["pope"])[0] == "testbed"
    out = tmp_path / "run"
    hd.evaluate(
        engine, tasks=["pope"], strategy=["var"], data=[str(folders["iid"])], limit=1, out=out
    )
    told = [json.loads((out / name).read_text("utf-8")) for name in ("run.json", "results.json")]
    assert told[0]["model"] == "testbed-planted"
    assert {entry["model"] for entry in told[1]["runs"]} == {"testbed-planted"}
