from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halludecode.core.errors import InvalidModel, InvalidParameter, InvalidRequest
from halludecode.views import image_text_matcher as blip_itm
from halludecode.views import masks
from tests.support import families

DATA = Path(__file__).parents[1] / "data" / "contrastive.json"
OFFICIAL = json.loads((DATA.parent / "official" / "agla.json").read_text())["captions"]["cases"]
VECTORS = {v["id"]: v for v in json.loads(DATA.read_text())["vectors"]}
QUESTION = "is there a red cat in the picture?"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "?",
    *["is", "there", "a", "red", "cat", "dog", "in", "the", "picture"],
]
SIDE = 5  # patches per side


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    return save_tiny_blip(tmp_path_factory.mktemp("blip"))


def save_tiny_blip(path) -> str:
    """A random BLIP retrieval model; its embedding table ends with [DEC] and [ENC] as BLIP's."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForImageTextRetrieval,
        BlipImageProcessor,
        BlipProcessor,
    )

    text = {
        "vocab_size": len(WORDS) + 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": len(WORDS),
        "pad_token_id": 0,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8 * SIDE,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    model = BlipForImageTextRetrieval(config).eval()
    families.sharpen(model)
    model.save_pretrained(path)
    size = {"height": 8 * SIDE, "width": 8 * SIDE}
    BlipProcessor(
        image_processor=BlipImageProcessor(size=size),
        tokenizer=BertTokenizer(vocab={w: i for i, w in enumerate(WORDS)}),
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def picture():
    return families.pictures()[1]


def by_hand(path, picture, question, layer, encoder_token):
    """The map from a whole backward pass with every weight in the graph, summed entry by entry."""
    from transformers import BlipForImageTextRetrieval, BlipProcessor

    model = BlipForImageTextRetrieval.from_pretrained(path).eval()
    inputs = BlipProcessor.from_pretrained(path)(images=picture, text=question, return_tensors="pt")
    inputs["input_ids"][0, 0] = encoder_token
    found = []

    def keep(module, args, output):
        output[1].retain_grad()
        found.append(output[1])

    model.text_encoder.encoder.layer[layer].crossattention.self.register_forward_hook(keep)
    model(**inputs).itm_score[0, 1].backward()
    weights, slope = found[0][0].detach(), found[0].grad[0]
    heads, tokens, patches = weights.shape
    content = range(1, tokens - 1)
    made = [0.0] * (patches - 1)
    for j in range(1, patches):
        for i in content:
            for h in range(heads):
                made[j - 1] += float(weights[h, i, j] * max(float(slope[h, i, j]), 0.0)) / heads
        made[j - 1] /= len(content)
    return torch.tensor(made).reshape(SIDE, SIDE)


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case["caption"][:20])
def test_captions_are_the_official_ones(case):
    assert blip_itm.caption(case["question"]) == case["caption"]


def test_the_matcher_reads_the_bare_question(matcher, picture):
    bare = blip_itm.masked(picture, question="is there a red cat?", model=matcher)
    dressed = "Is there a RED cat? Please answer yes or no."
    assert blip_itm.masked(picture, question=dressed, model=matcher) == bare
    assert blip_itm.caption("Describe it, please.") == "describe it, please", "no question mark"


def test_gradcam_matches_the_vector():
    case = VECTORS["agla_gradcam"]
    attention = torch.tensor(case["inputs"]["cross_attention"])
    gradient = torch.tensor(case["inputs"]["gradient"])
    made = blip_itm.gradcam(attention, gradient)
    expected = torch.tensor(case["expected"]["token_mean"])
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [1, 6])
def test_relevance_is_the_map_made_by_hand(matcher, picture, layer):
    made, similarity = blip_itm.relevance(
        picture, QUESTION, model=matcher, layer=layer, device="cpu"
    )
    encoder_token = len(WORDS) + 1
    expected = by_hand(matcher, picture, QUESTION, layer, encoder_token)
    assert made.dtype == torch.float32
    assert made.shape == (SIDE, SIDE)
    torch.testing.assert_close(made, expected, atol=1e-7, rtol=1e-4)
    assert float(made.max()) > 1e-5
    other = by_hand(matcher, picture, QUESTION, layer, WORDS.index("[CLS]"))
    assert not torch.allclose(made, other, atol=1e-7, rtol=1e-4)
    assert -1 <= similarity <= 1


def test_similarity_is_the_cosine_of_the_two_embeddings(matcher, picture):
    from transformers import BlipForImageTextRetrieval, BlipProcessor

    model = BlipForImageTextRetrieval.from_pretrained(matcher).eval()
    inputs = BlipProcessor.from_pretrained(matcher)(
        images=picture, text=QUESTION, return_tensors="pt"
    )
    with torch.no_grad():
        seen = model.vision_model(inputs["pixel_values"]).last_hidden_state[0, 0]
        read = model.text_encoder(inputs["input_ids"]).last_hidden_state[0, 0]
        expected = torch.cosine_similarity(model.vision_proj(seen), model.text_proj(read), dim=0)
    _, similarity = blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    assert similarity == pytest.approx(float(expected), abs=1e-5)


def test_map_depends_on_picture_and_question(matcher, picture):
    one, _ = blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    for image, question in ((families.pictures()[2], QUESTION), (picture, "the dog")):
        other, _ = blip_itm.relevance(image, question, model=matcher, device="cpu")
        assert not torch.allclose(one, other)


def test_the_same_answer_twice_and_inside_inference_mode(matcher, picture):
    one, _ = blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    with torch.no_grad():
        two, _ = blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    with torch.inference_mode():
        three, _ = blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    assert torch.equal(one, two)
    assert torch.equal(one, three)


def test_threads_do_not_mix_their_pictures(matcher):
    def one(image):
        return blip_itm.relevance(image, QUESTION, model=matcher, device="cpu")[0]

    images = families.pictures() * 6
    expected = [one(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(one, images))
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_long_questions_are_cut(matcher, picture):
    long = " ".join(["cat"] * 200)
    cut = " ".join(["cat"] * (blip_itm.MAX_TOKENS - 2))
    a, _ = blip_itm.relevance(picture, long, model=matcher, device="cpu")
    b, _ = blip_itm.relevance(picture, cut, model=matcher, device="cpu")
    assert torch.equal(a, b)


def test_masked_is_the_paper_mask_of_this_map(matcher, picture):
    made = blip_itm.masked(picture, question=QUESTION, model=matcher)
    assert made.size == (384, 384)
    grid, similarity = blip_itm.relevance(picture, QUESTION, model=matcher)
    expected = masks.agla_mask(picture, relevance=grid, similarity=similarity)
    assert made.tobytes() == expected.tobytes()
    bright = Image.new("RGB", (50, 40), (200, 200, 200))
    questions = ("cat", "is there a dog in the picture?", "the red picture", QUESTION)
    found = {q: blip_itm.relevance(bright, q, model=matcher)[1] for q in questions}
    best = max(found, key=found.get)
    assert found[best] > 0.01, "no question of the random matcher gives a positive similarity"
    made = np.asarray(blip_itm.masked(bright, question=best, model=matcher))
    share = float((made.sum(-1) == 0).mean())
    assert share == pytest.approx(found[best] / 2, abs=1e-3)


def test_the_matcher_is_loaded_once_and_frozen(matcher, picture):
    blip_itm._matcher.cache_clear()
    for _ in range(2):
        blip_itm.relevance(picture, QUESTION, model=matcher, device="cpu")
    assert blip_itm._matcher.cache_info().misses == 1
    blip, _, _ = blip_itm._matcher(matcher, "cpu")
    assert all(p.grad is None and not p.requires_grad for p in blip.parameters())
    layer = blip.text_encoder.encoder.layer[6]
    assert not layer.crossattention._forward_pre_hooks
    assert not layer.crossattention.self._forward_hooks


def test_questions_without_words_and_missing_layers_are_refused(matcher, picture):
    with pytest.raises(InvalidRequest, match="matcher=self"):
        blip_itm.relevance(picture, "", model=matcher, device="cpu")
    with pytest.raises(InvalidParameter, match="layer=8"):
        blip_itm.relevance(picture, QUESTION, model=matcher, layer=8, device="cpu")


def test_a_missing_matcher_says_what_to_do(picture, tmp_path):
    with pytest.raises(InvalidModel, match="use matcher=self"):
        blip_itm.relevance(picture, QUESTION, model=str(tmp_path))


def test_a_checkpoint_without_the_matching_head_is_refused(matcher, picture, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in Path(matcher).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    left = {k: v for k, v in weights.items() if not k.startswith("itm_head")}
    save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"itm_head\.bias.* 1 more"):
        blip_itm.relevance(picture, QUESTION, model=str(tmp_path))
