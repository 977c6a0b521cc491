"""The answer is looked at word by word, and what is settled on is written token by token."""

from __future__ import annotations

import torch

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.views import detection, fields
from tests.support import detectors, families

QUESTION = "What is this?"


def naive(engine, picture, tokens, models):
    """Token by token, with a pass of the plain model for each thing that is asked."""
    prompt = Prompt((Turn("user", (picture, QUESTION)),))

    def write(ids, count, view=picture):
        shown = prompt.replace_pictures([view])
        asked = ActivationRequest(shown, write=count, logits=True, answered=tuple(ids))
        return engine.activations(asked)

    def pieces(ids):
        return engine.inputs.pieces(ids)

    answer, place, looks = list(write([], tokens).token_ids), 0, 0
    while place < len(answer):
        words = [w for w in fields.words_of(pieces(answer)) if w[0] >= place]
        if not words:
            break
        first, place, letters = words[0]
        word = letters.removesuffix("s")
        if not word:
            continue
        looks += 1
        (things,) = detection.find([picture], model=models[0], threshold=0.4, labels=(word,))
        if len(things) > 3:
            continue
        wide, high = picture.image.size
        box = (0.2, 0.2, 0.8, 0.8)
        if things:
            smallest = min(things, key=lambda t: (t.box[2] - t.box[0]) * (t.box[3] - t.box[1])).box
            box = tuple(v / n for v, n in zip(smallest, (wide, high) * 2, strict=True))
        crops = [fields.cropped(picture, b) for b in fields.fields(box, 0.6, 4)]
        logits = [write(answer[:first], 1, crop).logits[0] for crop in crops]
        p = [x.softmax(-1) for x in logits]
        apart = {}
        for i in range(4):
            for j in range(i + 1, 4):
                m = (p[i] + p[j]) / 2
                apart[i, j] = sum(float((m * (m / p[n]).log()).sum()) for n in (i, j)) / 2
        best = sorted(apart, key=apart.get, reverse=True)[:2]
        scores = [logits[b] - 0.05 * logits[a] for i, j in best for a, b in ((i, j), (j, i))]
        tokens_there = list(dict.fromkeys(int(each.argmax()) for each in scores))
        if tokens_there == [answer[first]]:
            continue
        texts = []
        for token in tokens_there:
            ids = [*answer[:first], token]
            whole = pieces([*ids, *write(ids, 4).token_ids])
            end = min(end for _, end, _ in fields.words_of(whole) if end > first)
            texts.append(fields.spelt(whole[:end]))
        fits = detection.similarities([picture], texts, model=models[1])[0]
        token = tokens_there[int(fits.argmax())]
        if token != answer[first]:
            answer = [*answer[:first], token]
            answer += write(answer, max(tokens - len(answer), 1)).token_ids
            place = first + 1
    return answer[:tokens], looks


def test_answers_are_those_of_a_naive_search(family_engine):
    engine = family_engine("llava")
    models = detectors.save_grounding_dino(), detectors.save_siglip()
    pictures = families.pictures()[:2]
    asked = [hd.Request(QUESTION, [picture]) for picture in pictures]
    spec = f"halc(tokens=6,objects=all,detector={models[0]},matcher={models[1]})"
    sampling = hd.Sampling(max_new_tokens=8)
    made = engine.generate(asked, spec, sampling)
    for output, picture in zip(made, pictures, strict=True):
        wanted, looks = naive(engine, Picture.of(picture), 6, models)
        assert looks > 0
        assert list(output.token_ids[:6]) == wanted
    plain = engine.generate(asked, "greedy", sampling)
    assert made[1].token_ids != plain[1].token_ids


def test_listing_and_planning_load_no_model(monkeypatch):
    monkeypatch.setattr(detection, "_loaded", None)
    plan = compile_plan("halc(objects=all)", typical_model_info())
    assert plan.rows == ("main",)
    assert plan.needs == {"activations", "in turn"}
    assert "and others in turn" in str(plan.cost)


def test_an_answer_read_before_is_as_if_it_were_written(family_engine):
    engine = family_engine("llava")
    prompt = Prompt((Turn("user", (Picture.of(families.pictures()[0]), QUESTION)),))
    whole = engine.activations(ActivationRequest(prompt, write=5, logits=True))
    begun = whole.token_ids[:2]
    rest = engine.activations(ActivationRequest(prompt, write=3, logits=True, answered=begun))
    assert (*begun, *rest.token_ids) == whole.token_ids
    assert rest.pieces == whole.pieces
    torch.testing.assert_close(rest.logits, whole.logits[2:], atol=1e-4, rtol=1e-4)
