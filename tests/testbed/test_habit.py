"""What a row without the picture knows of invented objects, and how much a contrast can decide."""

import math

import numpy as np
import pytest

import halludecode as hd
from halludecode.testbed import CAPTION, dataset, model_path
from halludecode.testbed.train.habit import _alone, _auroc, _blind, habit


def test_scores_are_those_of_the_text_alone():
    import torch

    engine = hd.load("testbed")
    pictures = sorted((dataset("testbed-iid", 12) / "images").iterdir())[:2]
    sampling = hd.Sampling(max_new_tokens=90, logprobs=2)
    asked, held = [hd.Request(CAPTION, [picture]) for picture in pictures], 0
    for output in engine.generate(asked, "greedy", sampling, explain=True):
        prompt = engine.tokenizer(f"USER: \n{CAPTION} ASSISTANT:").input_ids
        with torch.inference_mode():
            logits = engine.model(input_ids=torch.tensor([[*prompt, *output.token_ids]])).logits
        scores = logits[0].log_softmax(-1)[len(prompt) - 1 :]
        each = scores[range(len(output.token_ids)), list(output.token_ids)].tolist()
        named = list(_blind(output))
        assert len(named) > 2
        for name, score in named:
            first, *rest = (engine.tokenizer(word).input_ids[-1] for word in name.split())
            places = [i for i, token in enumerate(output.token_ids) if token == first]
            sums = [sum(each[i : i + 1 + len(rest)]) for i in places]
            if places:  # else it was named in the plural
                assert min(abs(total - score) for total in sums) < 1e-4
                held += 1
    assert held > 3


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([3.0, 2.0, 1.0], [True, False, False], 1.0),
        ([1.0, 2.0, 3.0], [True, False, False], 0.0),
        ([1.0, 1.0], [True, False], 0.5),
        ([1.0, 2.0], [False, False], None),
        ([], [], None),
    ],
)
def test_auroc_counts_pairs(scores, positive, expected):
    assert _auroc(np.array(scores), np.array(positive, bool)) == expected


def test_one_token_alone_is_one_whose_second_lies_below_the_cut():
    assert _alone([math.log(0.9), math.log(0.089)])
    assert not _alone([math.log(0.091), math.log(0.9)])


def test_the_shipped_model_has_what_contrasts_need():
    found = habit(model_path(), 24)
    assert 0 < found["invented"] < found["mentions"]
    assert 0.4 < found["decided"] < 0.75
