"""Words, flags and the page of an explanation, without a model."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import halludecode as hd
from halludecode.analysis import explanation_page as page
from halludecode.analysis.grounding import Threshold, load_threshold, numbers, words
from halludecode.core.errors import InvalidData, InvalidRequest
from halludecode.engines.api import Choice, ExplainedToken, Explanation, Output, Timings

BELOW = Threshold(0.5, {"grounding": "mean", "entropy": "max", "mass": "mean"}, "mine", {})
TEXT = (("a", 0.0), (" traffic", 2.0), (" light", 0.0), (" and", -9.0), (" two", 0.1))
TEXT += ((" dogs", 0.4), (".", 0.2), ("", 1.0))
PICTURE = Image.new("RGB", (40, 30), (10, 200, 90))


def explained(pairs=TEXT, maps=1):
    grid = np.arange(6, dtype=np.float32).reshape(2, 3) / 30
    return Explanation(
        tuple(
            ExplainedToken(text, i, value, 0.1 * i, 0.5, (grid * (i + 1),) * maps)
            for i, (text, value) in enumerate(pairs)
        )
    )


def output(*told, warnings=()):
    choices = [
        Choice("".join(t.text for t in one.tokens), (1,), "stop", explanation=one) for one in told
    ]
    return Output(tuple(choices), "vcd(alpha=1.0)", 0, Timings(), ("main",), warnings=warnings)


def made(*told, pictures=(PICTURE,), prompt="What?", digest="mine", warnings=()):
    about = {"model": "m", "model_digest": digest, "engine": "hf", "dtype": "float32"}
    request = hd.Request(prompt, pictures)
    return page.render(request, output(*told, warnings=warnings), pictures, about, BELOW)


class Read(HTMLParser):
    """Elements with their attributes, and the JSON the page holds."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.data, self._open = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, data):
        self.data += data if self._open else ""

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_words_join_tokens_and_name_objects():
    found = words(explained(), BELOW)
    assert [word.text for word in found] == ["a", "traffic light", "and", "two", "dogs", "."]
    light, dogs = found[1], found[4]
    assert (light.object, light.tokens, light.ungrounded) == ("traffic light", (1, 2), False)
    assert light.values["grounding"] == pytest.approx(1.0)
    assert light.values["entropy"] == pytest.approx(0.2), "the larger of its tokens'"
    assert (dogs.object, dogs.ungrounded) == ("dog", True)
    assert not found[2].ungrounded, "however low: no object"


def test_words_of_scripts_without_spaces():
    found = words(explained((("图中", 1.0), ("有狗", 2.0), (" OK", 3.0))), BELOW)
    assert [word.text for word in found] == ["图", "中", "有", "狗", "OK"]
    assert [word.values["grounding"] for word in found] == [1.0, 1.0, 2.0, 2.0, 3.0]


def test_numbers_are_json_without_maps():
    told = json.loads(json.dumps(numbers(explained(), BELOW)))
    assert told["tokens"][1] == {
        "text": " traffic",
        "token_id": 1,
        "grounding": 2.0,
        "entropy": 0.1,
        "mass": 0.5,
    }
    assert [(o["object"], o["ungrounded"]) for o in told["objects"]] == [
        ("traffic light", False),
        ("dog", True),
    ]


def test_the_shipped_threshold_says_where_it_is_from(tmp_path):
    shipped = load_threshold()
    assert shipped.described(shipped.model_digest) == "calibrated on the testbed"
    other = "calibrated on the testbed; uncalibrated for this model"
    assert shipped.described("of another model") == other
    assert shipped.source["made_by"] == "python benchmarks/grounding.py"
    assert 0 < shipped.source["measured"]["dev"]["recall"]["value"] <= 1
    for text in ("{}", "no json", '{"reduce": {"grounding": "sum"}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InvalidData, match=r"no grounding threshold; make it with `python"):
            load_threshold(tmp_path / "bad.json")


def test_the_page_needs_nothing_else():
    text = made(explained())
    read = Read(text)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|<link", text)
    assert all(image["src"].startswith("data:image/") for image in read.all("img"))
    assert not any("src" in script for script in read.all("script"))


def test_words_are_buttons_with_their_numbers_and_maps():
    text = made(explained())
    read = Read(text)
    buttons = read.all("button")
    assert [b["aria-label"].split(",")[0] for b in buttons] == [
        "a",
        "traffic light",
        "and",
        "two",
        "dogs",
    ]
    assert [("low" in b["class"].split()) for b in buttons] == [False, False, False, False, True]
    assert buttons[4]["aria-label"] == "dogs, ungrounded object, grounding +0.40 nats"
    spots = json.loads(read.data)["a1"]
    light = spots[int(buttons[1]["data-place"])]
    assert light["parts"] == ["traffic +2.00", "light 0.00"]
    assert (light["about"], spots[4]["about"]) == ("object word", "ungrounded object: dog")
    assert light["times"] == "2.7\N{MULTIPLICATION SIGN} as likely with the image"
    (grid,) = light["maps"]
    steps = np.frombuffer(base64.b64decode(grid["values"]), np.uint8)
    assert (grid["rows"], grid["columns"], len(steps)) == (2, 3, 6)
    assert steps.tolist() == [0, 51, 102, 153, 204, 255]
    assert light["peak"] == f"{5 / 30 * 2.5:.1%}", "the mean of its two tokens' maps"
    assert "<td>+2.00</td>" in text, "every token's number stands without the script"
    assert "1 of 2 object words ungrounded" in text
    assert "below 0.50 nats (calibrated on the testbed)" in text
    assert "uncalibrated for this model" in made(explained(), digest="other")


def test_several_answers_and_pictures():
    text = made(explained(maps=2), explained((("no", 0.0),), maps=2), pictures=(PICTURE, PICTURE))
    read = Read(text)
    assert len(read.all("canvas")) == len(read.all("img")) == 2
    assert "Answer 2" in text
    assert set(json.loads(read.data)) == {"a1", "a2"}
    assert "no object words" in text
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_without_a_raster_and_without_words():
    text = made(explained(maps=0), warnings=("There are no attention maps: so it is.",))
    assert "There are no attention maps: so it is." in text
    assert 'class="veil"' not in text
    assert "(no words)" in made(explained((("", 0.0),)))


def test_what_others_wrote_is_text():
    text = made(explained(((" </script><b>dog", 0.0),)), prompt="<i>&")
    assert "<b>dog" not in text
    assert "&lt;i&gt;&amp;" in text
    assert text.count("</script>") == 2
    assert json.loads(Read(text).data)["a1"][0]["word"]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_shades_are_legible_and_told_apart():
    ink = luminance("#1b1f24")
    for value in (-50, -3, -1, 0, 1, 3, 50):
        assert (luminance(page._colour(value)) + 0.05) / (ink + 0.05) > 4.5
    assert page._colour(0) == "#ffffff"
    more, less = (page._colour(x) for x in (3, -3))
    # Blue against orange: far apart in the blue channel, which no common colour blindness merges.
    assert abs(int(more[5:], 16) - int(less[5:], 16)) > 100
    assert page._colour(1) != page._colour(2)


@pytest.mark.parametrize(
    ("value", "words_"),
    [
        (0.0, "as likely with the image as without"),
        (2.3026, "10\N{MULTIPLICATION SIGN} as likely with the image"),
        (-0.6931, "2.0\N{MULTIPLICATION SIGN} less likely with the image"),
    ],
)
def test_grounding_in_words(value, words_):
    assert page._times(value) == words_


def test_unexplained_answers_and_bad_places(tmp_path):
    plain = Output((Choice("a", (1,), "stop"),), "greedy", 0, Timings(), ("main",))
    with pytest.raises(InvalidRequest, match="no explanation"):
        page.render(hd.Request("x"), plain, [], {}, BELOW)
    with pytest.raises(InvalidData, match="is a folder"):
        page.check_target(tmp_path)
    with pytest.raises(InvalidData, match="there is no folder"):
        page.check_target(tmp_path / "none" / "a.html")
    page.check_target(tmp_path / "a.html")
