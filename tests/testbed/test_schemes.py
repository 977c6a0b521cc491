"""`testbed train --scheme`: what the decoder is trained with is what the strategy runs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import halludecode as hd
from halludecode.core.errors import InvalidParameter
from halludecode.testbed import cli, model_path
from halludecode.testbed.scenes import scenes
from halludecode.testbed.train.language import TrainingTurn
from halludecode.testbed.train.network import _ATTENTION, pixels, plain_attention
from halludecode.testbed.train.rows import MANY, SHORT, TAIL, Writer, collate
from halludecode.testbed.train.run import Size, painted, save, train_seed
from halludecode.testbed.train.schemes import SCHEMES, attend

QUESTION = "Is there a dog in the image?"
PICTURE = Image.fromarray(next(iter(scenes("iid", 1))).image)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    painted(folder, Size(64, 64, judged=64))
    return folder


@torch.no_grad()
def trained_scores(engine, picture, scheme):
    """float32 [V]: the training's own forward of one question, where its answer begins."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_ATTENTION, plain_attention)
    AttentionMaskInterface.register(_ATTENTION, eager_mask)
    model = copy.deepcopy(engine.model).float()
    model.set_attn_implementation(_ATTENTION)
    writer = Writer(engine.tokenizer, model.config.image_token_id, scheme)
    words = len(writer.words)
    attend(model, scheme, words)
    row = writer.row([TrainingTurn(QUESTION, "yes")])
    ids, places, targets, _, mask = collate([row], SHORT[0], scheme)
    features = model.model.get_image_features(
        pixels(np.array(picture)[None], torch.device("cpu")), return_dict=True
    ).pooler_output
    embeds = model.get_input_embeddings()(ids)
    embeds[0, words : row.prefix] = features[0]
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask.float(), position_ids=places, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden)[0, int((targets[0] >= 0).nonzero()[0]) - 1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_strategy_runs_what_is_trained(testbed, scheme):
    picture = PICTURE
    spec = f"mma(tail={TAIL})" if scheme == "mma" else scheme
    wanted = trained_scores(testbed, picture, scheme).log_softmax(-1)
    sampling = hd.Sampling(max_new_tokens=1, logprobs=5)
    made, plain = (
        testbed.generate(hd.Request(QUESTION, [picture]), each, sampling)[0].logprobs[0]
        for each in (spec, "greedy")
    )
    assert made.top == pytest.approx({t: float(wanted[t]) for t in made.top}, abs=2e-3)
    assert plain.top != pytest.approx({t: float(wanted[t]) for t in plain.top}, abs=2e-2)


def test_a_checkpoint_says_what_it_was_trained_with(testbed, tmp_path):
    model = copy.deepcopy(testbed.model)
    model.config.halludecode_scheme = "edvt"
    save(model, tmp_path / "model", model_path())
    engine = hd.load(str(tmp_path / "model"))
    assert engine.model_info.scheme == "edvt"
    output = engine.generate(
        hd.Request(QUESTION, [PICTURE]), "edvt", hd.Sampling(max_new_tokens=1)
    )[0]
    assert not output.warnings


def test_a_scheme_nobody_knows_is_refused(tmp_path):
    with pytest.raises(InvalidParameter, match="scheme is 'roped'; use cca, edvt, mma"):
        cli.train(tmp_path, scheme="roped")


def test_under_mma_a_row_has_one_question_of_any_kind():
    """The caption, which comes first, would else be all that is learnt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    image = tokenizer.convert_tokens_to_ids("<image>")
    turn = TrainingTurn(QUESTION, "yes")
    said = [TrainingTurn(QUESTION, "no", blind=True), TrainingTurn("word " * 99, "no"), turn]
    writers = [Writer(tokenizer, image, "mma"), Writer(tokenizer, image, "", alone=True)]
    for row in (writer.row([*said, turn], 1, MANY) for writer in writers):  # with it, and without
        assert len(row.ids) == row.prefix + MANY[0] and sum(map(bool, row.weights)) == 2
        assert {kind for kind in row.kinds if kind} == {"existence"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "scheme", "run_with"),
    [
        (("cca", True), "", "greedy"),
        (("mma", False), "mma", f"mma(tail={TAIL})"),
    ],
)
def test_a_short_training_from_the_shipped_weights(
    pictures, tmp_path, monkeypatch, how, scheme, run_with
):
    monkeypatch.setattr("halludecode.testbed.train.stage2.BATCH", 4)
    size = Size(64, 64, judged=64, words=2, scheme=how[0], control=how[1], warm=True)
    (tmp_path / "pictures").symlink_to(pictures)
    figures = train_seed(tmp_path, 0, size, torch.device("cpu"))
    assert "vision" not in figures and size.run_with == run_with
    if how[0] == "mma":
        assert {"existence accuracy", "place accuracy"} <= set(figures["words"]), "of any kind"
    engine = hd.load(str(tmp_path / "seed-0" / "model"))
    assert engine.model_info.scheme == scheme
    shipped = hd.load("testbed").model.state_dict()
    trained = engine.model.state_dict()
    same = {name for name in shipped if torch.equal(shipped[name], trained[name])}
    assert any("vision_tower" in name for name in same), "the tower stays"
    assert not any("language_model.layers" in name and "proj" in name for name in same)


def test_a_control_is_of_a_scheme(tmp_path):
    with pytest.raises(InvalidParameter, match="name it with --scheme"):
        cli.train(tmp_path, control=True)
