"""VTI: steered MLPs of tower and decoder in loops, and its directions beside plain forwards.

What the official code gave is in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.artifact import Artifact, shaping
from halludecode.core.branch import Edit
from halludecode.core.calibration import Calibration, CaptionPair
from halludecode.core.errors import InvalidParameter, UnsupportedStrategy
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Prompt
from halludecode.core.spec import get
from halludecode.models.tower_edit import tower_layers
from halludecode.views.directions import axis
from halludecode.views.patches import masked
from tests.engines.hf.test_naive_parity import N, check
from tests.support import families, naive, specs

IMAGE = families.pictures()[1]
PAIR = CaptionPair("A red thing.", "A red thing and a dog.")


def leaned(y, v, lam):
    """One vector's direction, turned a little, in plain numbers."""
    size, long = (math.sqrt(sum(a * a for a in each)) for each in (y, v))
    moved = [a / size + lam * b / long for a, b in zip(y, v, strict=True)]
    now = math.sqrt(sum(a * a for a in moved))
    return [a / now * size for a in moved]


def steering(stack, mlps, ways, lam):
    """Hooks that lean every token of every MLP's output; ``ways`` [layers, places or 1, width]."""
    for mlp, way in zip(mlps, ways.tolist(), strict=False):

        def lean(module, args, output, way=way):
            tokens = output.reshape(-1, output.shape[-1]).tolist()
            new = [leaned(y, way[t % len(way)], lam) for t, y in enumerate(tokens)]
            return torch.tensor(new).reshape(output.shape)

        stack.callback(mlp.register_forward_hook(lean).remove)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family, tmp_path):
    """With a direction for each place of the tower's views, and with one for all."""
    engine = specs.supplied(family_engine(family), tmp_path)
    spec = "vti(image=2.0,text=1.5)"
    made = engine.plan(spec).parts[0].model_info.artifact
    assert made["vision"].shape[1] == (1 if family == "qwen2_5_vl" else 65)
    inputs = naive.inputs_of(
        engine.processor, families.FAMILIES[family].prompt("What is this?"), [IMAGE]
    )
    decoder = [layer.mlp for layer in naive.decoder_layers(engine.model)]
    tower = [layer.mlp for layer in tower_layers(engine.model)][: made["vision"].shape[0]]

    def step(ids, t):
        with ExitStack() as stack:
            steering(stack, decoder, made["text"][:, None], 0.15)
            steering(stack, tower, made["vision"], 0.2)
            return naive.next_logits(engine.model, inputs, ids)

    check(engine, spec, naive.write(step, N, ()), IMAGE)


def leaving(layers, run) -> torch.Tensor:
    """[layers, T, width]: what leaves some layers while ``run`` runs."""
    kept = []
    with ExitStack() as stack, torch.no_grad():
        for layer in layers:

            def keep(module, args, output):
                kept.append((output[0] if isinstance(output, tuple) else output).clone())

            stack.callback(layer.register_forward_hook(keep).remove)
        run()
    return torch.stack(kept)


def test_directions_are_those_of_plain_forwards(family_engine):
    engine = family_engine("llava")
    pictures, pairs = families.pictures()[:2], [PAIR, CaptionPair("Grey.", "Grey, with a cat.")]
    samples = [
        (hd.Request("Describe it.", [picture]), pair)
        for picture, pair in zip(pictures, pairs, strict=True)
    ]
    prompts = [engine.prompt_of(request) for request, _ in samples]
    vti = get("vti", trials=2, ratio=0.5, patch=4)
    cal = Calibration(prompts, lambda r: engine.activations(r, remember=False), pairs)
    made = vti.calibrate(cal, engine.model_info)

    text = []
    for prompt, picture, pair in zip(prompts, pictures, pairs, strict=True):
        ends = []
        for words in pair:
            rendered = engine.inputs.render(prompt.answered(words))
            assert rendered.endswith(words)
            inputs = naive.inputs_of(engine.processor, rendered, [picture])
            layers = naive.decoder_layers(engine.model)
            ends.append(
                leaving(layers, lambda given=inputs: naive.next_logits(engine.model, given, []))[
                    :, 0, -1
                ]
            )
        text.append((ends[0] - ends[1]).flatten())
    shape = (engine.model_info.num_layers, engine.model_info.hidden_size)
    close(made["text"], axis(torch.stack(text)).view(shape))

    def states(prompt, edit):
        row = engine.row_builder.activation_row(ActivationRequest(prompt, pixels=edit))
        vision = engine.model_info.vision
        layers = tower_layers(engine.model)[: vision.read_layers]
        run = lambda: engine.model.get_image_features(row.pixel_values)  # noqa: E731
        return leaving(layers, run)[:, 0]

    seen = []
    for prompt in prompts:
        known = (("ratio", 0.5), ("patch", 4))
        copies = [states(prompt, Edit(masked, known, draw=draw)) for draw in range(2)]
        assert not torch.equal(*copies)
        seen.append((copies[0] + copies[1]) / 2 - states(prompt, None))
    for place in range(made["vision"].shape[1]):
        flat = torch.stack([each[:, place].flatten() for each in seen])
        close(made["vision"][:, place], axis(flat).view(made["vision"][:, place].shape))


def close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-3)


def test_an_axis_is_the_mean_and_where_most_of_the_spread_lies():
    shifts = torch.tensor([[1.0, 0.0, 5.0], [1.0, 3.0, 5.0], [1.0, 0.0, 5.0]])
    assert axis(shifts).tolist() == pytest.approx([1, 1 + 1, 5])
    assert torch.equal(axis(shifts[:1]), shifts[0])  # nothing spreads


def test_masks_are_drawn_by_their_number_and_keep_a_share():
    pixels = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    rng = [torch.Generator().manual_seed(n) for n in (0, 0, 1)]
    made = [masked(pixels, ratio=0.75, patch=2, rng=each) for each in rng]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    kept = (made[0] == pixels).all(1).view(2, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3).all(-1)
    assert kept.flatten(1).sum(-1).tolist() == [4, 4] and not torch.equal(*kept)
    rows = masked(pixels.view(12, 32), ratio=0.5, patch=9, rng=torch.Generator().manual_seed(0))
    assert (rows == pixels.view(12, 32).mean(0)).all(-1).sum() == 6


def test_needs_artifact_and_pairs():
    m = typical_model_info()
    made = {"text": torch.ones(32, 64), "vision": torch.ones(23, 1, 8)}
    plan = compile_plan("vti", replace(m, artifact=made))
    assert plan.needs == {"main prompt", "tower", "steer"} and plan.cost.rows == 1
    off = compile_plan("vti(image=0)", replace(m, artifact=made))
    assert off.needs == {"steer"}
    with pytest.raises(UnsupportedStrategy, match="halludecode calibrate --model M vti"):
        compile_plan("vti", m)
    cal = Calibration([Prompt(())], lambda request: None, ["yes"])  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidParameter, match=r"pairs of captions.*h_value"):
        get("vti").calibrate(cal, m)


def test_an_artifact_knows_its_masks():
    assert shaping(get("vti", image=0.1)) == {"trials": 50, "ratio": 0.99, "patch": 14}
    assert Artifact("vti", shaping(get("vti")), "", {}).name.startswith("vti-patch_14-ratio_0.99")
