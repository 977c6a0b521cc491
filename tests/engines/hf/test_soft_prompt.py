"""Soft prompts: the loss against a loop, what training changes and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

import halludecode as hd
from halludecode.core.errors import InvalidParameter
from halludecode.engines.hf import soft_prompt
from halludecode.engines.inputs.chat import to_prompt
from tests.support import families, naive

ANSWERS = ("a red cat", "Yes", "two dogs and a hat")


def pairs_of(engine):
    spot = engine.family.placeholder
    requests = [hd.Request("What is this?", [p]) for p in families.pictures()]
    prompts = [to_prompt(r, spot) for r in requests]
    return list(zip(prompts, ANSWERS, strict=True))


def train(engine, seed=0):
    return soft_prompt.train(engine.hf_model, engine.row_builder, pairs_of(engine), seed=seed)


def slow_loss(engine, soft: torch.Tensor) -> float:
    """Mean over answers of the mean nats of their tokens, each pair alone, each token in turn."""
    family, words = families.FAMILIES["llava"], engine.processor.tokenizer
    means = []
    for image, answer in zip(families.pictures(), ANSWERS, strict=True):
        inputs = naive.inputs_of(engine.processor, family.prompt("What is this?"), [image])
        told = [*words(" " + answer, add_special_tokens=False)["input_ids"], words.eos_token_id]
        nats = []
        for i, token in enumerate(told):
            fed = naive.extended(inputs, told[:i])["input_ids"]
            embeds = engine.model.get_input_embeddings()(fed).clone()
            embeds[fed == engine.model.config.image_token_id] = soft
            with torch.no_grad():
                logits = engine.model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
            nats.append(-float(logits.log_softmax(-1)[token]))
        means.append(sum(nats) / len(nats))
    return sum(means) / len(means)


def test_the_loss_of_a_padded_batch_is_that_of_single_answers(family_engine):
    engine = family_engine("llava")
    soft = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    examples = [
        soft_prompt._example(engine.hf_model, engine.row_builder, *p) for p in pairs_of(engine)
    ]
    with torch.no_grad():
        made = soft_prompt._loss(engine.hf_model, engine.inputs, soft, examples)
    assert float(made) == pytest.approx(slow_loss(engine, soft), abs=1e-4)


def test_training_lowers_the_loss_and_repeats_with_its_seed(family_engine, monkeypatch):
    monkeypatch.setattr(soft_prompt, "EPOCHS", 30)
    engine = family_engine("llava")
    first, again, other = train(engine), train(engine), train(engine, seed=1)
    assert (first["soft"].shape, first["soft"].dtype) == ((64, 128), torch.float32)
    assert len(first["loss"]) == 30
    assert float(first["loss"][-1]) < float(first["loss"][0]) - 0.5
    assert torch.equal(first["soft"], again["soft"])
    assert not torch.equal(first["soft"], other["soft"])
    assert slow_loss(engine, first["soft"]) < float(first["loss"][0]) - 0.5


def test_a_small_memory_takes_the_same_steps(family_engine):
    engine = family_engine("llava")
    whole = train(engine)
    parts = soft_prompt.train(engine.hf_model, engine.row_builder, pairs_of(engine), at_once=1)
    assert torch.allclose(parts["loss"], whole["loss"], atol=1e-4)
    assert torch.allclose(parts["soft"], whole["soft"], atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_the_model_stays_as_it_is(family, family_engine):
    engine = family_engine(family)
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    asking = [p.requires_grad for p in engine.model.parameters()]
    made = train(engine)
    assert all(torch.equal(before[k], v) for k, v in engine.model.state_dict().items())
    assert [p.requires_grad for p in engine.model.parameters()] == asking
    assert all(p.grad is None for p in engine.model.parameters())
    assert made["soft"].shape[1] == engine.model_info.hidden_size
    assert len(made["soft"]) == max(
        image.count
        for prompt, _ in pairs_of(engine)
        for image in engine.row_builder.activation_row(
            hd.core.activations.ActivationRequest(prompt)
        ).images
    ), "as many vectors as the largest picture has tokens"


def test_a_training_that_fails_leaves_the_model_trainable(family_engine, monkeypatch):
    engine = family_engine("llava")
    monkeypatch.setattr(soft_prompt, "_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(engine)
    assert all(p.requires_grad for p in engine.model.parameters())


def test_answers_are_the_tokens_a_model_writes(family_engine):
    for family in ("llava", "qwen2_5_vl"):
        engine = family_engine(family)
        row = engine.row_builder.activation_row(
            hd.core.activations.ActivationRequest(pairs_of(engine)[0][0])
        )
        ids = soft_prompt._answer_ids(engine.inputs, row.prompt, "Yes")
        words = engine.processor.tokenizer
        assert words.decode(ids, skip_special_tokens=True).strip() == "Yes"
        assert ids[-1] == words.eos_token_id


def test_without_answers_about_pictures_there_is_nothing_to_train_on(family_engine):
    engine = family_engine("llava")
    with pytest.raises(InvalidParameter, match=r"annotations/captions\*\.json or pope/\*\.jsonl"):
        soft_prompt.train(engine.hf_model, engine.row_builder, [])
