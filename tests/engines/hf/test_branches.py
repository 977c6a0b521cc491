"""Every kind of row edit, in strategies as a user would write them, against plain model calls."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Branch, Edit
from halludecode.core.errors import InvalidRequest
from halludecode.core.registry import STRATEGIES
from halludecode.core.state import PerImageToken
from tests.support import families


@contextmanager
def registered(cls, name="toy_row"):
    """A strategy that exists only inside the block."""
    try:
        yield hd.strategy(name)(cls)()
    finally:
        STRATEGIES._entries.pop(name, None)


class Row(hd.Strategy):
    """Write with the extra row alone, so that its logits are the answer."""

    def combine(self, step):
        return step["other"]


def halve(features: torch.Tensor, *, by: float) -> torch.Tensor:
    return features * by


def first_ones(features: torch.Tensor, *, n: int) -> torch.Tensor:
    return features[:n]


def every_other(hidden: torch.Tensor) -> torch.Tensor:
    hidden[::2] = True
    return hidden


def wrong_shape(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[..., :1]


def ask() -> hd.Request:
    return hd.Request("What is this?", [families.pictures()[0]])


FEW = hd.Sampling(max_new_tokens=4, min_new_tokens=4, logprobs=1)


def features_of(engine):
    row = engine.rows(ask())["main"]
    return row, engine.hf_model.features(row.images)[0]


def written(engine, ids, features, n=4):
    """Tokens of plain forwards on given visual features, cache-free."""
    out: list[int] = []
    for _ in range(n):
        made = engine.model(
            input_ids=torch.cat([ids, torch.tensor(out, dtype=torch.long)])[None],
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[features])},
            use_cache=False,
        )
        logits = made.logits[0, -1].float()
        logits[engine.end_tokens] = -torch.inf
        out.append(int(logits.argmax()))
    return tuple(out)


@torch.no_grad()
def test_features_edit_sees_projected_features(family_engine):
    engine = family_engine("llava")

    class Halved(Row):
        def branches(self, prompt, state, m):
            return {"other": Branch(prompt, features=Edit(halve, (("by", 0.5),)))}

    row, features = features_of(engine)
    with registered(Halved) as strategy:
        output = engine.generate(ask(), strategy, FEW)[0]
        shown = engine.rows(ask(), strategy)["other"]
    assert output.token_ids == written(engine, row.input_ids, features * 0.5)
    assert output.token_ids != written(engine, row.input_ids, features)
    assert torch.allclose(shown.embeds, features * 0.5)
    assert engine.rows(ask())["main"].embeds is None


@torch.no_grad()
def test_features_may_change_the_count(family_engine):
    engine = family_engine("llava")

    class Fewer(Row):
        def branches(self, prompt, state, m):
            return {"other": Branch(prompt, features=Edit(first_ones, (("n", 5),)), tokens=5)}

    row, features = features_of(engine)
    image = engine.model.config.image_token_id
    keep = (row.input_ids != image) | ((row.input_ids == image).cumsum(0) <= 5)
    with registered(Fewer) as strategy:
        output = engine.generate(ask(), strategy, FEW)[0]
        assert len(engine.rows(ask(), strategy)["other"].input_ids) == int(keep.sum())
    assert output.token_ids == written(engine, row.input_ids[keep], features[:5])


def test_hidden_image_tokens_are_never_seen(family_engine):
    """Hiding tokens equals a mask that hides them, positions unchanged."""
    engine = family_engine("llava")

    class Hidden(Row):
        def branches(self, prompt, state, m):
            return {"other": Branch(prompt, mask=Edit(every_other))}

    row, features = features_of(engine)
    image = row.input_ids == engine.model.config.image_token_id
    mask = torch.ones_like(row.input_ids)
    mask[image.nonzero().flatten()[::2]] = 0
    with torch.no_grad():
        made = engine.model(
            input_ids=row.input_ids[None],
            attention_mask=mask[None],
            position_ids=torch.arange(len(mask))[None],
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[features])},
        )
    expected = made.logits[0, -1].float().log_softmax(-1)
    with registered(Hidden) as strategy:
        output = engine.generate(ask(), strategy, hd.Sampling(max_new_tokens=1, logprobs=1))[0]
        shown = engine.rows(ask(), strategy)["other"]
    assert int(shown.hidden.sum()) == int(image.sum()) // 2
    assert output.token_ids[0] == int(expected.argmax())
    assert output.logprobs[0].logprob == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_main_branch_edits_the_prompt_every_other_row_gets(family_engine, family):
    engine = family_engine(family)

    class Instructed(hd.Strategy):
        def branches(self, prompt, state, m):
            return {"main": Branch(prompt.with_instruction("Describe the image."))}

    described = hd.Request("Describe the image.", ask().images)
    with registered(Instructed):
        rows = engine.rows(ask(), "toy_row+vcd")
        output = engine.generate(ask(), "toy_row+vcd", FEW)[0]
    assert rows["main"].prompt == rows["noised"].prompt == engine.rows(described)["main"].prompt
    assert output.token_ids == engine.generate(described, "vcd", FEW)[0].token_ids


def test_equal_rows_are_shared(family_engine):
    engine = family_engine("llava")

    class Blind(Row):
        def branches(self, prompt, state, m):
            return {"other": Branch(prompt.without_images())}

    with registered(Blind):
        output = engine.generate(ask(), "toy_row+m3id", FEW)[0]
        assert output.rows == ("main", "other"), "m3id's blind row is the same row"
        assert engine.generate(ask(), "toy_row+vhr", FEW)[0].rows == ("main", "other", "blind")


def test_pixels_must_keep_their_shape(family_engine):
    engine = family_engine("llava")

    class Cropped(Row):
        def branches(self, prompt, state, m):
            return {"other": Branch(prompt, pixels=Edit(wrong_shape))}

    with registered(Cropped) as strategy, pytest.raises(InvalidRequest, match="must be kept"):
        engine.generate(ask(), strategy, FEW)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_looks_see_what_transformers_reports(family_engine, family):
    engine = family_engine(family)
    model, processor = engine.model, engine.processor
    text = families.FAMILIES[family].prompt("What is this?")
    image = families.pictures()[1]
    inputs = processor(text=[text], images=[image], return_tensors="pt").to(torch.float32)
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            plain = model(**inputs, output_hidden_states=True, output_attentions=True)
            plain = getattr(plain, "language_model_outputs", plain)  # InstructBLIP keeps them there
    finally:
        model.set_attn_implementation("sdpa")
        if hasattr(getattr(model, "model", None), "rope_deltas"):
            model.model.rope_deltas = None
    from halludecode.engines.inputs.chat import to_prompt

    prompt = to_prompt(hd.Request("What is this?", [image]), engine.family.placeholder)
    attends = engine.model_info.attending(range(families.LAYERS))
    layers = attends[::2]
    seen = engine.activations(ActivationRequest(prompt, hidden=layers, heads=layers, image=layers))
    every = engine.activations(ActivationRequest(prompt, hidden=layers, every_token=True))
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    for i, layer in enumerate(layers):
        hidden = plain.hidden_states[layer + 1][0]
        hidden = hidden[0] if hidden.dim() == 3 else hidden  # of Gemma 3n's streams the first
        torch.testing.assert_close(seen.hidden[i], hidden[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(every.hidden[i], hidden, atol=1e-4, rtol=1e-4)
        weights = plain.attentions[attends.index(layer)][0, :, -1]
        torch.testing.assert_close(seen.image[i], weights[:, is_image], atol=1e-5, rtol=1e-4)
    assert torch.equal(every.image_mask, is_image)
    start, rows, columns = seen.image_spans[0]
    assert start >= 0
    assert rows * columns > 0
    assert start + rows * columns <= int(is_image.sum())
    size = getattr(model.config.get_text_config(), "v_head_dim", 32)  # Kimi's values have their own
    assert seen.heads.shape == (len(layers), 4, size)


def test_looks_are_remembered(family_engine):
    engine = family_engine("llava")
    fresh = hd.Request("Is it remembered?", ask().images)
    engine.generate(fresh, "agla", hd.Sampling(max_new_tokens=1))
    before = engine.hf_model.calls
    engine.generate(fresh, "agla", hd.Sampling(max_new_tokens=1))
    assert engine.hf_model.calls - before == 2, "the main row and the masked one"


@pytest.mark.parametrize("question", ["Describe the image.", "describe the image"])
def test_agla_masks_under_the_generic_prompt_too(question, family_engine):
    engine = family_engine("llava")
    rows = engine.rows(hd.Request(question, [families.pictures()[0]]), "agla")
    assert tuple(rows) == ("main", "masked")
    assert not torch.equal(rows["main"].pixel_values, rows["masked"].pixel_values)


def test_agla_with_the_papers_matcher(family_engine, tmp_path):
    """BLIP-ITM with random weights, end to end: the masked row sees the masked picture."""
    from tests.views.test_image_text_matcher import save_tiny_blip

    path = save_tiny_blip(tmp_path)
    engine = family_engine("llava")
    spec = f"agla(matcher=blip,blip={str(path)!r})"
    row = engine.rows(ask(), spec)["masked"]
    assert row.images[0].picture.image.size == (384, 384)
    output = engine.generate(ask(), spec, FEW)[0]
    assert "matcher=blip" in output.strategy
    assert output.rows == ("main", "masked")


def test_three_parts_of_one_strategy_keep_their_rows_apart(family_engine):
    engine = family_engine("llava")
    spec = "vcd+vcd(noise_step=100)+vcd(noise_step=900)"
    plan = engine.plan(spec)
    assert plan.rows == ("main", "noised", "vcd.noised", "vcd.noised#2")
    assert plan.cost.rows == 4
    rows = engine.rows(ask(), spec)
    assert tuple(rows) == plan.rows
    pixels = [row.pixel_values for row in rows.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(pixels) for b in pixels[:i])
    assert engine.plan("m3id+m3id(lam=0.1)").rows == ("main", "blind"), "equal rows are one"


def test_attend_reads_its_state_and_per_token_values(family_engine):
    engine = family_engine("llava")

    class Weighted(hd.Strategy):
        """Image keys gain what a pass kept of them, times a number from the state."""

        def activations(self, prompt, m):
            return {"seen": ActivationRequest(prompt, image=(1,))} if prompt.pictures else {}

        def prepare(self, activations, m):
            if not activations:
                return {"by": torch.tensor(1.0), "share": PerImageToken(torch.zeros(0))}
            share = activations["seen"].image.mean((0, 1))
            return {"by": torch.tensor(3.0), "share": PerImageToken(share / share.max())}

        def attend(self, a):
            a.add_scores(
                a.image, a.state["by"][:, None, None, None] * a.key("share")[:, None, None]
            )

    with registered(Weighted, "toy_weighted") as strategy:
        asked = [
            hd.Request("What is this?", [families.pictures()[0]]),
            hd.Request("Hello"),
            hd.Request("Which one?", families.pictures()[:2]),
        ]
        together = engine.generate(asked, strategy, FEW)
        plain = engine.generate(asked, "greedy", FEW)
        assert together[1].token_ids == plain[1].token_ids
        for request, output, base in zip(asked, together, plain, strict=True):
            alone = engine.generate(request, strategy, FEW)[0]
            assert alone.token_ids == output.token_ids
            if request.images:
                assert abs(output.logprobs[0].logprob - base.logprobs[0].logprob) > 1e-4


def test_branches_may_depend_on_the_request(family_engine):
    """A request whose branches lack a row reads its main row there."""
    engine = family_engine("llava")

    class Sometimes(hd.Strategy):
        def branches(self, prompt, state, m):
            return {"blind": Branch(prompt.without_images())} if prompt.pictures else {}

        def combine(self, step):
            return 2 * step["main"] - step["blind"]

    mixed = [hd.Request("Hello"), ask()]
    with registered(Sometimes, "toy_sometimes") as strategy:
        outputs = engine.generate(mixed, strategy, FEW)
        assert outputs[0].token_ids == engine.generate(mixed[0], "greedy", FEW)[0].token_ids
        assert outputs[1].token_ids == engine.generate(ask(), strategy, FEW)[0].token_ids


def test_looks_may_write(family_engine):
    """A description with the raw logits that predicted each of its tokens, as VDGD needs it."""
    from halludecode.engines.inputs.chat import to_prompt

    engine = family_engine("llava")
    spot = engine.family.placeholder
    prompts = [
        to_prompt(hd.Request(words, [families.pictures()[1]]), spot) for words in ("A?", "Why?")
    ]
    requests = [ActivationRequest(prompt, hidden=(1,), write=5, logits=True) for prompt in prompts]
    engine.collect(requests, reuse=True)
    for prompt, request in zip(prompts, requests, strict=True):
        seen = engine.activations(request)
        words = prompt.question
        request = hd.Request(words, [families.pictures()[1]])
        plain = engine.generate(request, "greedy", hd.Sampling(max_new_tokens=5, logprobs=1))[0]
        assert seen.token_ids == plain.token_ids
        assert seen.text == plain.text
        assert seen.logits.shape == (len(plain.token_ids), engine.model_info.vocab_size)
        assert seen.logits.argmax(-1).tolist() == list(plain.token_ids)
        for row, entry in zip(seen.logits, plain.logprobs, strict=True):
            assert float(row.log_softmax(-1).max()) == pytest.approx(entry.logprob, abs=1e-4)
        again = engine.activations(ActivationRequest(prompt, hidden=(1,)))
        torch.testing.assert_close(seen.hidden, again.hidden, atol=1e-5, rtol=1e-4)
