"""Maps: means and intervals by hand, resuming, round trips, pictures, complaints."""

from __future__ import annotations

import json

import numpy as np
import pytest

import halludecode as hd
from halludecode.analysis import head_sensitivity as hd_heads
from halludecode.analysis.head_map import Grid, HeadMap, spearman
from halludecode.analysis.head_records import HeadRecord, Part, Records, summarise
from halludecode.analysis.head_sensitivity import METRICS, HeadSample, head_sensitivity
from halludecode.core.activations import ActivationRequest
from tests.support import families

FEW = {"resamples": 50}


@pytest.fixture
def engine(family_engine):
    return family_engine("llava")


def samples() -> list[tuple[hd.Request, str]]:
    words = ["What is this?", "Is it so?", "Describe it, please.", "Why?"]
    pictures = families.pictures()
    return [
        (hd.Request(w, [pictures[i % 3]]), "yes" if i % 2 else "no") for i, w in enumerate(words)
    ]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("metric", METRICS)
def test_a_map_is_the_mean_of_its_samples(engine, tmp_path, metric):
    made = head_sensitivity(engine, samples(), metric, output=tmp_path, **FEW)
    assert made.values.shape == (6, 4)
    assert (made.samples, made.pictures) == (4, 3)
    assert made.model_digest == engine.digest
    head, *rows = lines(tmp_path / f"{metric}.jsonl")
    assert (head["metric"], head["model_digest"]) == (metric, engine.digest)
    main = {"vhd": "vhd", "mass": "image", "ablation": "answer"}[metric]
    by_hand = np.mean([row["parts"][main]["sum"] for row in rows], axis=0)
    np.testing.assert_allclose(made.values, by_hand, rtol=1e-6)
    assert (made.low <= made.values + 1e-9).all()
    assert (made.values <= made.high + 1e-9).all()
    assert np.ptp(made.values) > 0
    alone = [head_sensitivity(engine, [s], metric, **FEW).values for s in samples()]
    np.testing.assert_allclose(made.values, np.mean(alone, axis=0), atol=2e-5, rtol=1e-4)
    assert HeadMap.load(tmp_path / f"{metric}.json").to_dict() == made.to_dict()


def test_t_vhd_is_kept_for_every_token_and_apart_for_right_and_wrong(engine, tmp_path):
    made = head_sensitivity(engine, samples(), "vhd", output=tmp_path, tokens=3, **FEW)
    rows = lines(tmp_path / "vhd.jsonl")[1:]
    every = [x for row in rows for x in row["t_vhd"]]
    assert made.numbers["t_vhd"]["value"] == pytest.approx(np.mean(every), rel=1e-5)
    counts = [
        row["parts"][name]["n"]
        for row in rows
        for name in ("t_vhd_right", "t_vhd_wrong")
        if name in row["parts"]
    ]
    assert counts == [1] * 4
    free = head_sensitivity(engine, [r for r, _ in samples()], "vhd", tokens=3, **FEW)
    assert set(free.numbers) == {"t_vhd"}
    np.testing.assert_allclose(free.values, made.values, rtol=1e-5)


# Resuming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_killed_run_continues_and_ends_with_the_same_map(engine, tmp_path, monkeypatch, metric):
    whole = head_sensitivity(engine, samples(), metric, output=tmp_path / "whole", **FEW)
    monkeypatch.setattr(engine, "batch_size", 1)
    calls, generate = [], engine.generate

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(engine, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        head_sensitivity(engine, samples(), metric, output=tmp_path / "part", **FEW)
    file = tmp_path / "part" / f"{metric}.jsonl"
    assert len(lines(file)) == 3, "two samples and the first line"
    assert not (tmp_path / "part" / f"{metric}.json").exists()
    with file.open("a") as torn:
        torn.write('{"id": "x", "parts": {"vhd"')
    made = head_sensitivity(engine, samples(), metric, output=tmp_path / "part", **FEW)
    assert len(calls) == 5, "two samples were left"
    np.testing.assert_allclose(made.values, whole.values, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(made.low, whole.low, atol=2e-5, rtol=1e-4)
    again = head_sensitivity(engine, samples(), metric, output=tmp_path / "part", **FEW)
    assert len(calls) == 5
    assert again.to_dict() == made.to_dict()


def test_more_samples_are_added_and_fewer_are_left_out(engine, tmp_path):
    two = head_sensitivity(engine, samples()[:2], "vhd", output=tmp_path, **FEW)
    four = head_sensitivity(engine, samples(), "vhd", output=tmp_path, **FEW)
    assert (two.samples, four.samples) == (2, 4)
    assert head_sensitivity(engine, samples()[:2], "vhd", output=tmp_path, **FEW).samples == 2
    twice = head_sensitivity(engine, samples()[:1] * 2, "vhd", output=tmp_path, **FEW)
    assert twice.samples == 2
    assert len(lines(tmp_path / "vhd.jsonl")) == 1 + 5


def test_another_model_or_measure_is_refused(engine, family_engine, tmp_path):
    head_sensitivity(engine, samples(), "vhd", output=tmp_path, **FEW)
    with pytest.raises(hd.InvalidData, match=r"vhd.jsonl belongs to another model .* --fresh"):
        head_sensitivity(family_engine("qwen2_5_vl"), samples(), "vhd", output=tmp_path, **FEW)
    with pytest.raises(hd.InvalidData, match=r"was measured otherwise \(settings"):
        head_sensitivity(engine, samples(), "vhd", output=tmp_path, tokens=5, **FEW)
    head_sensitivity(engine, samples(), "vhd", output=tmp_path, tokens=5, fresh=True, **FEW)
    (tmp_path / "mass.jsonl").write_text("not ours\n")
    with pytest.raises(hd.InvalidData, match="not a file this version wrote"):
        head_sensitivity(engine, samples(), "mass", output=tmp_path, **FEW)


# Means and intervals ----------------------------------------------------------------------------


def test_intervals_are_over_pictures_and_halves_are_alternate_pictures(tmp_path):
    """Two of three samples share a picture: resampled pictures, written out in loops."""
    given = [("a", 1.0), ("a", 5.0), ("b", 3.0), ("c", 8.0)]
    records = Records(tmp_path / "x.jsonl", {"model": "m", "model_digest": "d"})
    records.append(
        [
            HeadRecord(str(i), picture, {"x": Part(1, np.full((1, 2), value))}, {})
            for i, (picture, value) in enumerate(given)
        ]
    )
    found = summarise(records, {"0", "1", "2", "3"}, lambda m: {"": m["x"]}, resamples=3000, seed=1)
    assert (found.samples, found.pictures) == (4, 3)
    assert found.means[""].tolist() == [[4.25, 4.25]]
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(3000 // 500):
        for row in rng.integers(3, size=(500, 3)):
            own = [v for p in row for name, v in given if name == "abc"[p]]
            drawn.append(sum(own) / len(own))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low[""][0, 0] == pytest.approx(low)
    assert found.high[""][0, 1] == pytest.approx(high)
    assert [half[""][0, 0] for half in found.halves] == [pytest.approx(14 / 3), 3.0]
    one = summarise(records, {"2"}, lambda m: {"": m["x"]}, resamples=10)
    assert one.halves is None
    assert one.low[""][0, 0] == 3.0


def test_spearman_is_of_ranks_and_none_for_a_constant():
    a = np.array([[1.0, 2.0], [3.0, 40.0]])
    assert spearman(a, a**3) == pytest.approx(1.0)
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert spearman(a, np.zeros((2, 2))) is None


def test_object_words_count_real_minus_invented(engine, monkeypatch, tmp_path):
    """The engine's part is faked: what is tested is the arithmetic over samples."""
    import torch

    changes = iter([torch.arange(24.0).reshape(6, 4, 1).repeat(1, 1, 3), torch.ones(6, 4, 3)])
    places = iter([{"hallucinated": [0], "real": [1, 2]}, {"hallucinated": [], "real": [2]}])
    monkeypatch.setattr(hd_heads.measure, "ablation", lambda *a: next(changes))
    monkeypatch.setattr(hd_heads, "object_tokens", lambda *a: next(places))
    given = [HeadSample(r, objects=("dog",)) for r, _ in samples()[:2]]
    made = head_sensitivity(engine, given, "ablation", tokens=3, **FEW)
    ramp = np.arange(24.0).reshape(6, 4)
    np.testing.assert_allclose(made.parts["hallucinated"].values, ramp)
    np.testing.assert_allclose(made.parts["real"].values, (2 * ramp + 1) / 3)
    np.testing.assert_allclose(made.values, (2 * ramp + 1) / 3 - ramp)


def test_captions_without_an_invented_object_are_told(engine, monkeypatch):
    monkeypatch.setattr(hd_heads, "object_tokens", lambda *a: {"hallucinated": [], "real": [0]})
    with pytest.raises(hd.InvalidData, match="name no invented object"):
        head_sensitivity(
            engine, [HeadSample(samples()[0][0], objects=("dog",))], "ablation", tokens=1, **FEW
        )


# The map ----------------------------------------------------------------------------------------


def grid(values) -> Grid:
    values = np.asarray(values, dtype=np.float64)
    return Grid(values, values - 1, values + 1)


def a_map(values, metric="vhd", **more) -> HeadMap:
    return HeadMap(metric, "some/model", "digest", 10, 5, grid(values), unit="nats", **more)


def test_top_is_in_order_and_of_equal_ones_the_first():
    made = a_map([[1.0, 5.0], [5.0, -2.0]], parts={"half": grid([[4.0, 3.0], [2.0, 1.0]])})
    assert [(h.layer, h.head, h.value) for h in made.top(3)] == [
        (0, 1, 5.0),
        (1, 0, 5.0),
        (0, 0, 1.0),
    ]
    assert made.top(1, largest=False)[0] == (1, 1, -2.0, -3.0, -1.0)
    assert made.top(1, part="half")[0].value == 4.0
    assert len(made.top(100)) == 4
    with pytest.raises(hd.InvalidParameter, match="k must be at least 1"):
        made.top(0)
    with pytest.raises(hd.InvalidParameter, match="its parts: half"):
        made.plot(part="other")


def test_the_table_shows_intervals_and_parts():
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(a_map([[1.0, 5.0]], parts={"half": grid([[4.0, 3.0]])}).table(1))
    text = console.export_text()
    console.file.close()
    assert "4 .. 6" in text
    assert "half" in text
    assert text.count("│") >= 2


@pytest.mark.parametrize("shape", [(5, 8), (28, 28), (32, 32), (80, 64), (1, 2)])
@pytest.mark.parametrize("metric", ["vhd", "ablation"])
def test_pictures_are_900_wide_light_and_nothing_is_cut_off(shape, metric, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape) if metric == "ablation" else rng.random(shape)
    made = a_map(values, metric, stability=0.9, parts={"inliers": grid(values / 2)})
    figure = made.plot()
    figure.savefig(tmp_path / "map.png")
    from PIL import Image

    with Image.open(tmp_path / "map.png") as opened:
        picture = opened.convert("RGB")
    assert picture.width == 900
    assert picture.getpixel((2, 2)) == (255, 255, 255)
    edge = [picture.getpixel((x, y)) for x in range(900) for y in (0, picture.height - 1)]
    edge += [picture.getpixel((x, y)) for y in range(picture.height) for x in (0, 899)]
    assert set(edge) == {(255, 255, 255)}, "nothing reaches the border"
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    image = axes.images[0]
    assert image.get_cmap().name == ("RdBu_r" if metric == "ablation" else "cividis")
    low, high = image.get_clim()
    assert low == (-high if metric == "ablation" else 0)


def test_maps_of_other_models_are_not_compared():
    from dataclasses import replace

    made = a_map([[1.0, 2.0]])
    assert made.agreement(a_map([[3.0, 4.0]])) == pytest.approx(1.0)
    with pytest.raises(hd.InvalidParameter, match="different models"):
        made.agreement(replace(made, model_digest="other"))


def test_damaged_files_are_told(tmp_path):
    path = a_map([[1.0, 2.0]]).save(tmp_path / "sub" / "map.json")
    assert HeadMap.load(path).values.tolist() == [[1.0, 2.0]]
    content = json.loads(path.read_text())
    for text, told in (
        ("{", "not a map"),
        ("[]", "not a map"),
        (json.dumps({**content, "schema": 99}), "not a map"),
        (json.dumps({k: v for k, v in content.items() if k != "low"}), "a damaged map"),
    ):
        path.write_text(text)
        with pytest.raises(hd.InvalidData, match=told):
            HeadMap.load(path)
    with pytest.raises(hd.InvalidData, match="cannot be read"):
        HeadMap.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("given", "metric", "told"),
    [
        ([], "vhd", "No samples"),
        ([hd.Request("What is this?")], "vhd", "Sample 1 has no picture"),
        (None, "heat", "Unknown metric 'heat'; known: vhd, mass, ablation"),
        (None, "ablation", "1 of 2 samples have an answer, 0 true objects"),
    ],
)
def test_bad_samples_are_told(engine, given, metric, told):
    if given is None:
        given = [samples()[0], samples()[1][0]]
    with pytest.raises(hd.HalluDecodeError, match=told):
        head_sensitivity(engine, given, metric)


@pytest.mark.parametrize("metric", ["vhd", "mass"])
def test_layers_without_attention_keep_their_numbers(family_engine, metric):
    engine = family_engine("lfm2_vl")  # its last layer has none
    asked = hd.Request("What is this?", families.pictures()[:1])
    made = head_sensitivity(engine, [asked], metric, tokens=1, **FEW)
    has = [layer for layer in range(6) if layer not in engine.model_info.recurrent]
    assert made.values.any(1).nonzero()[0].tolist() == has
    assert f"Only layers {has[0]}, {has[1]} have attention" in made.notes[-1]
    prompt = engine.prompt_of(asked)
    looks = [
        engine.activations(ActivationRequest(p, heads=tuple(has), image=tuple(has)))
        for p in (prompt, prompt.without_images())
    ]
    wanted = looks[0].image.sum(-1)
    if metric == "vhd":
        wanted = (looks[0].heads - looks[1].heads).norm(dim=-1)
    np.testing.assert_allclose(made.values[has], wanted, atol=1e-5, rtol=1e-4)
