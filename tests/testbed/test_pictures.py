"""The pictures shipped for examples: what they are, and what their names are taken for."""

import numpy as np
import pytest
from PIL import Image

import halludecode as hd
from halludecode.cli import main
from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.images import load_picture
from halludecode.testbed import PICTURES, pictures
from halludecode.testbed.assets import named_picture, picture_path


def test_they_are_the_scenes_they_are_said_to_be(tmp_path):
    made = pictures.write(tmp_path)
    assert len(made) == PICTURES
    for number, file in enumerate(made, start=1):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(hd.testbed.picture(number)))


def test_a_name_is_a_picture_wherever_a_path_is():
    own = hd.testbed.picture(3)
    assert (own.mode, own.size) == ("RGB", (120, 120))
    assert load_picture("testbed:3") == load_picture(picture_path(3))
    assert load_picture("testbed:3") == load_picture(own)
    assert named_picture("street.png") is None
    assert named_picture(own) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("testbed:0", "has no picture 0; there are testbed:1 to testbed:8"),
        ("testbed:9", "has no picture 9"),
        ("testbed:", "write testbed:1 to"),
        ("testbed:-1", "write testbed:1 to"),
        ("testbed:three", "write testbed:1 to"),
        ("testbed:\u0663", "write testbed:1 to"),
    ],
)
def test_a_wrong_name_is_refused(name, words):
    with pytest.raises(InvalidRequest, match=words):
        load_picture(name)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate --model no/such --prompt x --image a:b.png", "a:b.png: no such image file."),
        ("generate --model no/such --prompt x --image testbed:9", "has no picture 9"),
        ("generate --model no/such --prompt x --image http://a/b.png", "not fetched"),
        ("generate --model no/such --prompt x --image pyproject.toml", "not a readable picture"),
        ("demo --image testbed:9", "has no picture 9"),
    ],
)
def test_a_picture_is_checked_before_a_model_is_loaded(command, words, capsys):
    assert main(command.split()) != 0
    assert words in capsys.readouterr().err
