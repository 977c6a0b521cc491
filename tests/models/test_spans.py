"""Every family through the engine: plain transformers' tokens, rasters, patches, and refusals."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Branch, Edit
from halludecode.core.errors import InvalidModel, InvalidRequest, UnsupportedStrategy
from halludecode.core.registry import STRATEGIES
from halludecode.engines.hf import model as net
from halludecode.engines.inputs.chat import to_prompt
from halludecode.models.families import FAMILIES, family_of
from tests.support import families, naive

N = 8
PLAIN = {"max_new_tokens": N, "min_new_tokens": N, "do_sample": False}
LONG = hd.Sampling(max_new_tokens=N, min_new_tokens=N)
# Convolutions with random weights carry a spot anywhere; see the test of their cells.
CONVOLUTIONS = ("fast_vlm", "gemma3n")
SEEN = [n for n, row in FAMILIES.items() if "raster" not in row.lacks and n not in CONVOLUTIONS]
LAID = [name for name, layout in FAMILIES.items() if layout.patches is not None]


def asked(family: str) -> list[tuple[str, list[Image.Image]]]:
    """Questions with no picture, one, and several where the family takes them."""
    pictures = families.pictures()
    cases = [("What is this?", [picture]) for picture in pictures]
    cases.append(("Hello there, how are you today?", []))
    if families.FAMILIES[family].several:
        cases += [("Compare.", pictures[:2]), ("Which of these three is best?", pictures)]
    return cases


def plain(engine, family: str, question: str, pictures: list[Image.Image]) -> list[int]:
    """Tokens of the model's own `generate` on its processor's own output."""
    model, processor = engine.model, engine.processor
    text = families.FAMILIES[family].prompt(question, len(pictures))
    if family == "instructblip" and not pictures:  # the whole insists on a picture
        inputs, model = processor.tokenizer(text, return_tensors="pt"), model.language_model
    elif family == "paligemma":
        inputs = naive.inputs_of(processor, text, pictures)
    else:
        # A chat's pictures are one list: LLaVA-OneVision reads several otherwise than one.
        nested = [pictures] if len(pictures) > 1 else pictures
        inputs = processor(text=text, images=nested or None, return_tensors="pt")
        inputs = inputs.to(model.dtype)  # Llama 4's gives pixels in bfloat16
    out = model.generate(**inputs, **PLAIN)
    if hasattr(getattr(model, "model", None), "rope_deltas"):
        model.model.rope_deltas = None
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def test_every_layout_has_a_tiny_checkpoint():
    assert list(families.FAMILIES) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_plain_transformers(family_engine, family):
    """Padded in one batch and alone, with every number of pictures."""
    engine = family_engine(family)
    cases = asked(family)
    requests = [hd.Request(question, pictures) for question, pictures in cases]
    expected = [tuple(plain(engine, family, *case)) for case in cases]
    assert len(set(expected)) == len(expected)
    together = engine.generate(requests, "greedy", LONG)
    assert [output.token_ids for output in together] == expected
    for request, tokens in zip(requests, expected, strict=True):
        assert engine.generate(request, "greedy", LONG)[0].token_ids == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_encoded_together_are_as_encoded_apart(family_engine, family, monkeypatch):
    engine = family_engine(family)
    images = [
        engine.rows(hd.Request(question, [picture]))["main"].images[0]
        for question, picture in zip(("Is this red?", "Hm?", "?"), families.pictures(), strict=True)
    ]
    together = engine.hf_model.encode(images)
    monkeypatch.setattr(net, "VISION_BATCH", 6)  # two batches where pictures have several views
    engine.hf_model.clear_features()
    in_turn = engine.hf_model.features(images)
    for image in images:
        alone = engine.hf_model.encode([image])[image.pixel_key]
        assert len(alone) == image.count
        torch.testing.assert_close(together[image.pixel_key], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(in_turn.pop(0), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SEEN)
@pytest.mark.parametrize(("across", "down"), [(0, 0), (1, 0), (0, 1)])
def test_spans_are_rasters_of_the_whole_picture(family_engine, family, across, down):
    """A spot changes the overview's tokens most where it lies."""
    engine = family_engine(family)
    bare = Image.new("RGB", (128, 128), (90, 90, 90))
    spotted = bare.copy()
    spotted.paste(
        (250, 20, 20), (16 + 64 * across, 16 + 64 * down, 48 + 64 * across, 48 + 64 * down)
    )
    images = [engine.rows(hd.Request("Hm?", [p]))["main"].images[0] for p in (bare, spotted)]
    before, after = engine.hf_model.features(images)
    start, rows, columns = engine.inputs.picture(images[0].picture).span
    change = (after - before).norm(dim=-1)[start : start + rows * columns]
    assert len(change) == rows * columns
    place = int(change.argmax())
    assert (place // columns * 2 // rows, place % columns * 2 // columns) == (down, across)


@pytest.mark.parametrize("place", (0, 6, 15))
def test_cells_of_a_tower_of_convolutions_are_tokens_in_their_order(family_engine, place):
    engine = family_engine("fast_vlm")
    image = engine.rows(hd.Request("Hm?", families.pictures()[2:]))["main"].images[0]
    before = engine.hf_model.encode([image])[image.pixel_key]

    def nudge(module, args, output):
        output.last_hidden_state[0, :, place // 4, place % 4] += 1

    handle = engine.model.model.vision_tower.register_forward_hook(nudge)
    try:
        after = engine.hf_model.encode([image])[image.pixel_key]
    finally:
        handle.remove()
    start, rows, columns = engine.inputs.picture(image.picture).span
    assert (start, rows, columns) == (0, 4, 4)
    assert ((after - before).norm(dim=-1) > 1e-4).nonzero().flatten().tolist() == [place]


@contextmanager
def nudged(engine, view: int, patch: int):
    """One patch of one view is another where the tower's layer hands it to the projector."""
    vision = engine.model_info.vision
    number = vision.feature_layer % vision.layers
    (tower,) = (
        m for n, m in engine.model.named_modules() if n.endswith(f"{_tower(engine)}.{number}")
    )

    def nudge(module, args, output):
        made = (output[0] if isinstance(output, tuple) else output).clone()
        flat = made if made.dim() == 2 else made[view]  # Qwen's towers have no axis of views
        flat[patch + vision.has_cls] += 3 * torch.randn(flat.shape[-1])
        return (made, *output[1:]) if isinstance(output, tuple) else made

    handle = tower.register_forward_hook(nudge, prepend=True)  # before transformers records
    try:
        yield
    finally:
        handle.remove()


def _tower(engine) -> str:
    """The list of the vision tower's layers, by name."""
    names = [n.rpartition(".")[0] for n, _ in engine.model.named_modules() if n.endswith(".0")]
    known = (
        "vision_tower.layers",
        "blocks",
        "encoder.layers",
        "encoder.layer",
        "transformer.layers",
        "vision_model.model.layers",
    )
    (found,) = (n for n in names if n.endswith(known) and "qformer" not in n)
    return found


@pytest.mark.parametrize("family", LAID)
@pytest.mark.parametrize("share", (0, 0.4, 0.77, 1))
def test_patches_are_laid_onto_the_tokens_they_make(family_engine, family, share):
    """Tokens that change with a patch of the tower are those its value is laid onto."""
    engine = family_engine(family)
    image = engine.rows(hd.Request("Hm?", families.pictures()[2:]))["main"].images[0]
    pixels = image.pixels["pixel_values"]
    # Patches are 8 pixels wide, or the processor has already cut them out.
    if pixels.dim() == 2 or (pixels.dim() == 4 and pixels.shape[-1] <= 8):
        views, count = 1, len(pixels)
    else:
        views = len(pixels)
        count = pixels[0, 0].numel() // 64 if pixels.dim() == 4 else pixels.shape[1]
    view, last = round(share * (views - 1)), count - 1
    if "spatial_shapes" in image.pixels:  # the rest of a view fills it up
        last = int(image.pixels["spatial_shapes"][view].prod()) - 1
    if "image_position_ids" in image.pixels:  # likewise
        last = int((image.pixels["image_position_ids"][0, :, 0] >= 0).sum()) - 1
    patch = round((1 - share / 2) * last)
    before = engine.hf_model.encode([image])[image.pixel_key]
    with nudged(engine, view, patch):
        after = engine.hf_model.encode([image])[image.pixel_key]
    values = torch.zeros(1, views, 1, count)
    values[0, view, 0, patch] = 1
    laid = engine.family.patches(values, image.pixels, engine.model.config)
    assert laid.shape == (1, 1, image.count)
    changed = (after - before).norm(dim=-1) > 1e-4
    assert torch.equal(laid[0, 0] > 0, changed)
    assert int(changed.sum()) > 0 or family.startswith("llava_")  # where padding is cut off


def test_views_that_are_filled_up_attend_to_their_own_patches_alone(family_engine):
    """LFM2-VL's: what all of a view's patches receive adds up to one."""
    engine = family_engine("lfm2_vl")
    image = engine.rows(hd.Request("Hm?", families.pictures()[2:]))["main"].images[0]
    shapes = image.pixels["spatial_shapes"]
    assert (shapes.prod(-1) < image.pixels["pixel_values"].shape[1]).any()
    prompt = to_prompt(hd.Request("Hm?", families.pictures()[2:]), engine.family.placeholder)
    seen = engine.activations(ActivationRequest(prompt, vision=(0, 1))).vision
    whole = torch.full(seen.shape[:2], float(len(shapes)))
    torch.testing.assert_close(4 * seen.sum(-1), whole)  # a token is the mean of four patches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_a_template_gets_the_familys(family_engine, family, monkeypatch):
    engine, layout = family_engine(family), FAMILIES[family]
    monkeypatch.setattr(engine.processor, "chat_template", None)
    row = engine.rows(hd.Request("Hm?", families.pictures()[:1]))["main"]
    images = "" if layout.leading else layout.placeholder
    assert row.prompt == layout.turn.format(images=images, text="Hm?")
    assert int((row.input_ids == engine.model.config.image_token_id).sum()) == row.images[0].count
    blind = engine.rows(hd.Request("Hm?"))["main"].prompt
    assert layout.placeholder not in blind
    assert blind.count("\n\n") == layout.turn.count("\n\n")  # no line is left of the picture


@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_hold_an_image_token_are_refused(family_engine, family):
    engine = family_engine(family)
    token = engine.processor.tokenizer.convert_ids_to_tokens(engine.model.config.image_token_id)
    sneaky = hd.Request([{"role": "user", "content": f"Look: {token}"}])
    with pytest.raises(InvalidRequest, match=r"holds 1 image placeholder.* 0 image"):
        engine.generate(sneaky)


def test_features_may_belong_to_a_question(family_engine):
    """InstructBLIP's Q-Former reads it, so a picture has other features under another question."""
    engine = family_engine("instructblip")
    picture = families.pictures()[0]
    rows = [engine.rows(hd.Request(q, [picture]))["main"] for q in ("Is it red?", "What is it?")]
    first, second = engine.hf_model.features([row.images[0] for row in rows])
    assert (first - second).abs().max() > 1e-2
    assert rows[0].images[0].key != rows[1].images[0].key
    with pytest.raises(InvalidRequest, match="no chat template"):
        engine.generate(hd.Request([{"role": "user", "content": "a"}] * 2))
    with pytest.raises(InvalidRequest, match=r"\d+ tokens to the Q-Former, .* at most 512"):
        engine.generate(hd.Request("word " * 150, [picture]))


@pytest.mark.parametrize("family", [n for n, layout in FAMILIES.items() if layout.unshared])
def test_prefixes_that_cannot_be_shared_are_not_kept(family_engine, family):
    engine = family_engine(family)
    picture = families.pictures()[0]
    engine.prefixes.clear()
    engine.generate(
        [hd.Request(words, [picture]) for words in ("A?", "Why is it?")], "greedy", LONG
    )
    assert engine.prefixes.size == 0


@pytest.mark.parametrize("family", [n for n, row in FAMILIES.items() if "generate" in row.lacks])
def test_applied_refuses_families_whose_own_generate_passes_it_by(family_engine, family):
    engine = family_engine(family)
    with (
        pytest.raises(UnsupportedStrategy, match=rf"hd.applied.* family '{family}' cannot give"),
        hd.applied(engine.model, engine.processor, "apc_only"),
    ):
        pass


def test_provides_leaves_out_what_the_family_lacks(family_engine):
    assert "features" not in family_engine("qwen3_vl").provides
    assert "features" in family_engine("qwen2_vl").provides


def zeroed(pixels: torch.Tensor) -> torch.Tensor:
    return pixels * 0


def test_views_that_look_like_padding_are_refused(family_engine):
    engine = family_engine("idefics3")

    class Blank(hd.Strategy):
        def branches(self, prompt, state, m):
            return {"blank": Branch(prompt, pixels=Edit(zeroed))}

        def combine(self, step):
            return step["main"] - step["blank"]

    try:
        strategy = hd.strategy("toy_blank")(Blank)()
        with pytest.raises(InvalidRequest, match="takes for padding"):
            engine.generate(hd.Request("Hm?", families.pictures()[:1]), strategy, LONG)
    finally:
        STRATEGIES._entries.pop("toy_blank")


def test_language_models_with_an_encoder_are_refused():
    text = SimpleNamespace(is_encoder_decoder=True, model_type="t5")
    config = SimpleNamespace(model_type="instructblip", get_text_config=lambda: text)
    with pytest.raises(InvalidModel, match=r"encoder and a decoder \(t5\)"):
        family_of(config)
