"""The main prompt shows what a search settles on, and the search asks the model itself."""

from __future__ import annotations

import math

import pytest

import halludecode as hd
from halludecode.core.activations import ActivationRequest
from halludecode.core.errors import IncompatibleStrategies, InvalidParameter
from halludecode.core.passes import fake_passes
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.spec import parse
from halludecode.core.strategy import Strategy
from halludecode.views import zooming
from tests.support import families

QUESTION = "What is this?"


@pytest.mark.parametrize("shown", ["both", "view"])
def test_views_are_those_the_model_itself_is_surest_of(family_engine, shown):
    engine = family_engine("llava")
    picture = families.pictures()[1]
    limits = zooming.Limits(1.0, -1.0, (0.1, 0.1, 0.2), 3, 5, 0.6, 24)
    tokens = engine.inputs.scored_words(("yes", "no")).values()
    asked = []

    def answer(look):
        view = zooming.joined([look.box], picture.size, 24, 1.2)
        words = zooming.question(Picture.of(picture), look, view, whole=shown == "both")
        asked.append(words)
        kept = engine.activations(ActivationRequest(words, write=1, logits=True)).logits[0]
        yes, no = (max(math.exp(kept[i]) for i in ids) for ids in tokens)
        return 2 * yes / (yes + no) - 1

    search, told = zooming.search(picture.size, "cup", QUESTION, limits), None
    while True:
        try:
            told = [answer(look) for look in search.send(told)]
        except StopIteration as end:
            box = end.value
            break
    assert len(asked) > 9
    assert len(asked[0].pictures) == 1
    assert len(asked[-1].pictures) == 1 + (shown == "both")
    spec = f'zoom(cue="cup",smallest=24,upper=1,lower=-1,shown={shown})'
    rows = engine.rows(hd.Request(QUESTION, [picture]), spec)
    seen = [image.picture.image for image in rows["main"].images]
    view = zooming.joined([box], picture.size, 24, 1.2)
    assert view is not None, "a part of the picture"
    assert seen[-1].tobytes() == picture.crop(view).tobytes()
    assert len(seen) == 1 + (shown == "both")


def test_without_a_cue_the_model_names_it(family_engine):
    engine = family_engine("llava")
    prompt = Prompt((Turn("user", (Picture.of(families.pictures()[1]), QUESTION)),))
    wanted = zooming.cues_wanted(QUESTION)
    assert QUESTION in wanted.question and not wanted.pictures
    text = engine.activations(ActivationRequest(wanted, write=64)).text
    zoom, m = parse("zoom(smallest=24)")[0], engine.model_info
    first = zoom.activations(prompt, m)
    assert list(first) == ["cues"]
    kept = {"cues": engine.activations(first["cues"])}
    looks = zoom.next_activations(prompt, kept, m)
    words = [each.prompt.question for each in looks.values()]
    about = zooming.cues_in(text)
    assert (words and all(any(cue in word for cue in about) for word in words)) or len(about) == 1


def test_it_adds_pictures_and_goes_with_rows_but_not_with_passes():
    m = typical_model_info()
    assert {"more pictures", "in turn"} <= compile_plan("zoom", m).needs
    assert "more pictures" not in compile_plan("zoom(shown=view)", m).needs
    assert compile_plan("zoom+vcd", m).rows == ("main", "noised")
    for spec in ("zoom+agla", "zoom(shown=view)+agla"):
        with pytest.raises(IncompatibleStrategies, match=r"zoom shows other pictures, .* agla"):
            compile_plan(spec, m)


def test_passes_that_never_end_are_a_sentence():
    class Endless(Strategy):
        name = "endless"

        def next_activations(self, prompt, activations, m):
            return {str(len(activations)): ActivationRequest(prompt)}

    prompt = Prompt((Turn("user", ("?",)),))
    m = typical_model_info()
    with pytest.raises(InvalidParameter, match=r"endless\.next_activations gave new passes 64"):
        fake_passes(Endless(), prompt, {"first": ActivationRequest(prompt)}, m)
