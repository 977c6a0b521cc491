"""The tiny checkpoints load cleanly and look at their pictures; their templates hold."""

from __future__ import annotations

import time

import pytest
import torch

from halludecode.models import families as rows
from tests.support import families

MANY = list(families.FAMILIES)
CHATTING = [name for name, row in families.FAMILIES.items() if row.chat]


def test_every_family_that_is_served_is_tried():
    assert set(families.FAMILIES) == set(rows.FAMILIES)


@pytest.mark.parametrize("family", MANY)
def test_build_is_quick_and_loads_without_a_word(family, tmp_path, tmp_path_factory, caplog):
    import transformers

    families.family_path(family, tmp_path_factory)  # the imports are not part of the time
    begin = time.process_time()
    families.build(family, tmp_path)
    spent = time.process_time() - begin
    caplog.clear()
    transformers.logging.enable_propagation()
    try:
        model, _ = families.load(tmp_path)
    finally:
        transformers.logging.disable_propagation()
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []
    assert model.config.get_text_config().num_hidden_layers == families.LAYERS
    assert next(model.parameters()).dtype == torch.float32
    assert spent < 3


@pytest.mark.parametrize("family", MANY)
def test_what_is_written_depends_on_the_picture(family, tmp_path_factory):
    model, processor = families.load(families.family_path(family, tmp_path_factory))
    prompt = families.FAMILIES[family].prompt("What is this?")
    written = []
    for picture in families.pictures():
        inputs = processor(text=prompt, images=picture, return_tensors="pt").to(model.dtype)
        out = model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
        written.append(tuple(out[0, inputs["input_ids"].shape[1] :].tolist()))
    assert len(set(written)) == 3
    assert all(len(set(tokens)) >= 5 for tokens in written)


@pytest.mark.parametrize("family", CHATTING)
def test_chat_template_puts_pictures_first_and_takes_several_turns(family, tmp_path_factory):
    path = families.family_path(family, tmp_path_factory)
    _, processor = families.load(path)
    row = families.FAMILIES[family]
    image, ask = {"type": "image"}, {"type": "text", "text": "Hm?"}
    one = [{"role": "user", "content": [ask, image, image]}]
    assert processor.apply_chat_template(one, add_generation_prompt=True) == row.prompt("Hm?", 2)
    more = [
        *one,
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
        {"role": "user", "content": [ask]},
    ]
    text = processor.apply_chat_template(more, add_generation_prompt=True)
    space = " " if row.reply.endswith(":") else ""
    first = row.prompt("Hm?", 2) + f"{space}Yes{row.end}"
    assert text == first + row.prompt("Hm?", 0)


def test_pictures_are_the_same_every_time():
    assert [p.size for p in families.pictures()] == [(64, 64), (100, 60), (90, 140)]
    again = zip(families.pictures(), families.pictures(), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in again)
