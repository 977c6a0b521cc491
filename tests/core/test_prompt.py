"""Prompts, pictures and edits have identities that content alone decides."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from halludecode.core.branch import Edit
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.views.noise import diffuse


def picture(colour: int = 9) -> Picture:
    return Picture.of(Image.new("RGB", (4, 3), (colour, 0, 0)))


def test_equal_content_is_equal():
    assert picture() == picture()
    assert picture() != picture(10)
    assert Picture.of(Image.new("L", (4, 3), 9)).image.mode == "RGB"
    a, b = (Prompt((Turn("user", (picture(), "hi")),)) for _ in range(2))
    assert a.key == b.key
    assert a.key != Prompt((Turn("user", (picture(10), "hi")),)).key
    assert a.key != Prompt((Turn("user", ("hi", picture())),)).key


def test_the_placeholder_goes_with_the_newline_that_follows_it():
    raw = Prompt((Turn("user", ("USER: ", picture(), "\nWhat? ASSISTANT:")),), raw=True)
    assert raw.without_images().turns[0].parts == ("USER: ", "What? ASSISTANT:")
    assert raw.without_images().pictures == ()
    assert raw.question == "USER: \nWhat? ASSISTANT:"


def test_pictures_are_replaced_in_order():
    prompt = Prompt((Turn("user", (picture(1), "a")), Turn("user", (picture(2), "b"))))
    swapped = prompt.replace_pictures(list(reversed(prompt.pictures)))
    assert [p.key for p in swapped.pictures] == [picture(2).key, picture(1).key]


def test_another_instruction_keeps_the_pictures():
    chat = Prompt((Turn("user", (picture(), "a")), Turn("assistant", ("b",)), Turn("user", ("c",))))
    asked = chat.with_instruction("Describe the image.")
    assert asked.question == "Describe the image."
    assert asked.pictures == chat.pictures
    assert chat.question == "c"
    with pytest.raises(InvalidRequest, match="chat template"):
        Prompt((Turn("user", (picture(), "x")),), raw=True).with_instruction("y")


CHAT = Prompt(
    (
        Turn("system", ("Be brief.",)),
        Turn("user", (picture(1), "\nWhat is it?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Is ", picture(2), " another? ")),
    )
)


def test_a_reworded_question_leaves_the_rest_of_the_chat():
    given: list[str] = []
    louder = CHAT.map_question(lambda text: given.append(text) or "Really: " + text.upper())
    assert given == [CHAT.question] == ["Is  another?"]
    assert louder.turns[:3] == CHAT.turns[:3]
    assert louder.turns[3].parts == ("Really: IS  ANOTHER? ", picture(2))
    first = Prompt(CHAT.turns[:2]).map_question(str.upper)
    assert first.turns[1].parts == (picture(1), "\nWHAT IS IT?"), "a single text stays in place"
    assert CHAT.map_question(lambda text: text).question == CHAT.question
    wordless = Prompt((Turn("user", (picture(),)),)).map_question(lambda text: text + "Describe.")
    assert wordless.turns[0].parts == (picture(), "Describe.")
    with pytest.raises(InvalidRequest, match="chat template"):
        Prompt((Turn("user", (picture(), "x")),), raw=True).map_question(str.upper)


def test_a_system_message_is_added_or_replaced():
    careful = CHAT.with_system("Be careful.")
    assert careful.turns == (Turn("system", ("Be careful.",)), *CHAT.turns[1:])
    added = Prompt(CHAT.turns[1:]).with_system("Be careful.")
    assert added.key == careful.key != CHAT.key
    with pytest.raises(InvalidRequest, match="chat template"):
        Prompt((Turn("user", ("x",)),), raw=True).with_system("y")


def test_edits_have_identity_and_closures_are_refused():
    one, two = (Edit(diffuse, (("step", s),), draw=0) for s in (500, 900))
    assert one.key == Edit(diffuse, (("step", 500),), draw=0).key != two.key
    with pytest.raises(InvalidParameter, match="closure or lambda"):
        Edit(lambda x: x)

    def inner(x):
        return x

    with pytest.raises(InvalidParameter, match="module-level"):
        Edit(inner)


def test_noise_depends_on_picture_index_draw_and_step_only():
    pixels = torch.zeros(1, 3, 8, 8)

    def made(edited="a", index=0, draw=0, step=500):
        return Edit(diffuse, (("step", step),), draw=draw)(pixels, edited=edited, index=index)

    torch.manual_seed(1)
    first = made()
    torch.manual_seed(2)
    assert torch.equal(first, made())
    for other in (made(edited="b"), made(index=1), made(draw=1), made(step=501)):
        assert not torch.equal(first, other)
