import json
import subprocess
import sys
import warnings

import pytest

from halludecode import testbed
from halludecode.core.errors import InvalidModel
from halludecode.testbed import assets
from halludecode.testbed.categories import COLOURS, NAMES, THEMES
from halludecode.testbed.phrases import NUMBERS, noun, plural


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor = AutoProcessor.from_pretrained(testbed.model_path())
        model = AutoModelForImageTextToText.from_pretrained(testbed.model_path(), dtype="float32")
    return processor, model.eval()


def unknown(processor, text):
    ids = processor.tokenizer(text).input_ids
    return processor.tokenizer.unk_token_id in ids


def test_it_is_loaded_as_llava(loaded):
    processor, model = loaded
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.tokenizer.padding_side == "left"
    assert sum(p.numel() for p in model.parameters()) == 5_456_768


def test_every_word_of_the_world_is_known(loaded):
    processor, _ = loaded
    words = [*testbed.PROMPTS.values(), *THEMES, *COLOURS, *NUMBERS]
    words += [noun(name, count) for name in NAMES for count in (1, 2)]
    words += [plural(name) for name in NAMES]
    assert not [text for text in words if unknown(processor, text)]
    assert unknown(processor, "unicorn")


def test_every_question_and_caption_is_known(loaded, folders):
    processor, _ = loaded
    for split, folder in folders.items():
        captions = json.loads((folder / "annotations/captions.json").read_text("utf-8"))
        texts = [annotation["caption"] for annotation in captions["annotations"]]
        for path in folder.glob("pope/*.jsonl"):
            texts += [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        for path in folder.glob("mme/*/*.txt"):
            texts += [line.split("\t")[1] for line in path.read_text("utf-8").splitlines()]
        assert len(texts) > (70 if split == "train" else 600)
        for text in texts:
            assert not unknown(processor, text + testbed.PROMPTS["pope"]), text


def turn(role, *parts):
    return {"role": role, "content": list(parts)}


PICTURE = {"type": "image"}


def words(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize("first", ["picture", "words"])
def test_the_chat_template_is_the_training_prompt(loaded, first):
    parts = [PICTURE, words("Is there a dog in the image?")]
    chat = [turn("user", *(parts if first == "picture" else parts[::-1]))]
    text = loaded[0].apply_chat_template(chat, add_generation_prompt=True)
    assert text == "USER: <image>\nIs there a dog in the image? ASSISTANT:"


def test_a_conversation_alternates(loaded):
    processor, _ = loaded
    chat = [
        turn("user", PICTURE, words("Is there a dog?")),
        turn("assistant", words("yes")),
        {"role": "user", "content": "how many?"},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    expected = "USER: <image>\nIs there a dog? ASSISTANT: yes</s>USER: how many? ASSISTANT:"
    assert text == expected
    assert not unknown(processor, text.replace("<image>", ""))
    assert processor.apply_chat_template(chat).endswith("USER: how many? ")


def ask(loaded, folder, names, questions, tokens):
    import torch
    from PIL import Image

    processor, model = loaded
    chats = [[turn("user", PICTURE, words(question))] for question in questions]
    inputs = processor(
        images=[Image.open(folder / "images" / name) for name in names],
        text=[processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
        return_tensors="pt",
        padding=True,
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_sees_what_is_there(loaded, folders):
    """Random-setting questions of 16 pictures: far above chance, as its card says."""
    lines = (folders["iid"] / "pope/random.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line) for line in lines[:96]]
    texts = [q["text"] + testbed.PROMPTS["pope"] for q in questions]
    answers = ask(loaded, folders["iid"], [q["image"] for q in questions], texts, 2)
    assert set(answers) == {"yes", "no"}
    right = sum(a == q["label"] for a, q in zip(answers, questions, strict=True))
    assert right / len(questions) > 0.85


def test_it_describes_in_clean_words(loaded, folders):
    names = sorted(path.name for path in (folders["iid"] / "images").iterdir())[:4]
    prompts = [testbed.PROMPTS["chair"]] * 4
    for caption in ask(loaded, folders["iid"], names, prompts, 80):
        assert caption.startswith(("the image ", "this image "))
        assert caption.endswith(".")
        assert " ." not in caption and "<" not in caption


def test_the_card_tells_what_it_is():
    card = testbed.card()
    for words_ in ("tests mechanisms", "Attention has", "testbed train", "POPE adversarial, iid"):
        assert words_.lower() in card.lower()
    assert "$" not in card


def test_a_missing_model_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_ASSETS", tmp_path)
    with pytest.raises(InvalidModel, match="reinstall"):
        testbed.model_path()


def test_the_package_is_light_to_import():
    code = (
        "import sys, halludecode.testbed, halludecode.testbed.cli;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL', 'pycocotools')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
