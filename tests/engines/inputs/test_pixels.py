"""Pixels of any depth are scaled, not clipped, and what is transparent lies on one ground."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import halludecode as hd
from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.chat import to_prompt
from halludecode.engines.inputs.images import load_picture
from halludecode.engines.inputs.pixels import colour

GREY = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def key(source, **how) -> str:
    return load_picture(source, **how).key


def saved(image: Image.Image, kind: str = "PNG", **save) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


DEEP = {
    "I;16": lambda: Image.fromarray(GREY.astype("uint16") * 257),
    "I;16B": lambda: Image.frombytes("I;16B", (5, 5), (GREY.astype(">u2") * 257).tobytes()),
    "I": lambda: Image.fromarray(GREY.astype("int32") * 257),
    "I of 8 bits": lambda: Image.fromarray(GREY).convert("I"),
    "F": lambda: Image.fromarray(GREY.astype("float32") / 255),
    "F of 8 bits": lambda: Image.fromarray(GREY).convert("F"),
    "16-bit PNG": lambda: saved(Image.fromarray(GREY.astype("uint16") * 257)),
    "16-bit TIFF": lambda: saved(Image.fromarray(GREY.astype("uint16") * 257), "TIFF"),
    "float TIFF": lambda: saved(Image.fromarray(GREY.astype("float32") / 255), "TIFF"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_greys_are_scaled(kind):
    assert key(DEEP[kind]()) == key(Image.fromarray(GREY))


ARRAYS = {
    "uint8": COLOURS,
    "float": COLOURS.astype("float32") / 255,
    "float64 of 8 bits": COLOURS.astype("float64"),
    "uint16": COLOURS.astype("uint16") * 257,
    "int64": COLOURS.astype("int64"),
    "channels first": COLOURS.transpose(2, 0, 1),
    "one in a batch": COLOURS[None],
    "tensor": torch.tensor(COLOURS).permute(2, 0, 1),
    "tensor, channels last": torch.tensor(COLOURS),
    "float tensor": torch.tensor(COLOURS.transpose(2, 0, 1)).float() / 255,
    "opaque": np.concatenate([COLOURS, np.full((5, 5, 1), 255, np.uint8)], -1),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_tensors_are_pictures(kind):
    assert key(ARRAYS[kind]) == key(Image.fromarray(COLOURS))


def test_grey_bool_and_half_arrays():
    for grey in (GREY, GREY[..., None], torch.tensor(GREY)[None], GREY.astype("uint16") * 257):
        assert key(grey) == key(Image.fromarray(GREY))
    assert key(GREY > 100) == key(Image.fromarray(GREY > 100))
    halves = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    assert load_picture(halves).image.getpixel((1, 0)) == (255, 255, 255)


@given(st.integers(0, 65535), st.sampled_from(["I;16", "I;16B"]))
def test_every_16_bit_value_is_the_nearest_of_8_bits(value, mode):
    data = value.to_bytes(2, "big" if mode.endswith("B") else "little")
    shade = load_picture(Image.frombytes(mode, (1, 1), data)).image.getpixel((0, 0))[0]
    assert abs(shade * 257 - value) <= 128


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (np.full((2, 2), np.nan), "nan"),
        (np.full((2, 2, 3), -0.5), "-0.5..-0.5"),
        (np.full((2, 2), 70000), "70000"),
        (Image.fromarray(np.full((2, 2), 3.5e3, "float32")), "3500"),
        (np.zeros((2, 4, 5, 3)), "one picture at a time"),
        (np.zeros((5, 6, 7)), "no single picture"),
        (np.zeros((0, 6)), "no pixels"),
        (np.zeros(7), "no single picture"),
        (np.array([["a"]]), "no numbers"),
        (Image.new("RGB", (2, 2)).convert("LAB"), "LAB"),
    ],
)
def test_pixels_whose_range_cannot_be_told_are_refused(source, why):
    with pytest.raises(InvalidRequest, match=why):
        load_picture(source)


def transparent(mode: str) -> Image.Image:
    """Red, and behind it nothing; the colour below the nothing is green."""
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    return image if mode == "RGBA" else image.convert(mode)


def forms() -> dict[str, object]:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), (255, 0, 0))
    keyed.putpixel((1, 0), (0, 255, 0))
    return {
        "RGBA": transparent("RGBA"),
        "RGBa": transparent("RGBa"),
        "P": saved(palette, transparency=1),
        "RGB": saved(keyed, transparency=(0, 255, 0)),
        "GIF": saved(palette, "GIF", transparency=1),
        "WebP": saved(transparent("RGBA"), "WEBP", lossless=True, exact=True),
        "array": np.asarray(transparent("RGBA")),
    }


@pytest.mark.parametrize("form", forms())
def test_transparent_pictures_lie_on_one_ground(form):
    source = forms()[form]
    for how, ground in (({}, (255, 255, 255)), ({"background": "black"}, (0, 0, 0))):
        image = load_picture(source, **how).image
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), ground]
    assert load_picture(source, background=(1, 2, 3)).image.getpixel((1, 0)) == (1, 2, 3)


def test_grey_with_alpha_is_mixed_with_the_ground():
    image = Image.new("LA", (1, 1), (0, 51))
    assert load_picture(image).image.getpixel((0, 0)) == (204, 204, 204)
    assert load_picture(image, background="#000000").image.getpixel((0, 0)) == (0, 0, 0)


def test_requests_choose_their_ground_and_bad_ones_are_refused():
    asked = hd.Request("What?", [transparent("RGBA")], background="#0000ff")
    assert to_prompt(asked, "<image>").pictures[0].image.getpixel((1, 0)) == (0, 0, 255)
    for bad in ("nosuchcolour", (1, 2), (0, 0, 256), 7, "rgba(0,0,0,0)", (True, 0, 0)):
        with pytest.raises(InvalidRequest, match="background="):
            colour(bad)


def test_animated_pictures_show_their_first_frame_and_other_modes_their_colours():
    frames = [Image.new("RGB", (2, 2), shade) for shade in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = load_picture(data).image.getpixel((0, 0))
        assert red > 200 > 50 > blue
    bits = load_picture(Image.new("1", (1, 1), 1)).image
    assert bits.getpixel((0, 0)) == (255, 255, 255)
    for mode in ("CMYK", "YCbCr", "HSV"):
        shade = load_picture(frames[0].convert(mode)).image.getpixel((0, 0))
        assert shade[0] > 240 and max(shade[1:]) < 15


def test_orientation_is_kept_whatever_the_mode():
    image = Image.new("RGBA", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    data = saved(image, exif=exif)
    assert load_picture(data).image.size == (4, 6)
    assert load_picture(Image.open(io.BytesIO(data))).image.size == (4, 6)


RED, BLUE = (Image.new("RGB", (2, 2), shade) for shade in ("red", "blue"))


def parts(tmp_path) -> dict[str, dict]:
    file = tmp_path / "a b.png"
    file.write_bytes(saved(RED))
    text = base64.b64encode(saved(RED)).decode()
    url = "data:image/png;base64," + text
    source = {"type": "base64", "media_type": "image/png", "data": text}
    return {
        "image": {"type": "image", "image": RED},
        "image file": {"type": "image", "image": str(file)},
        "image file url": {"type": "image", "image": f"file://{str(file).replace(' ', '%20')}"},
        "image array": {"type": "image", "image": np.asarray(RED)},
        "url": {"type": "image", "url": url},
        "url of a file": {"type": "image", "url": file.as_uri()},
        "path": {"type": "image", "path": file},
        "base64": {"type": "image", "base64": text},
        "base64 in lines": {"type": "image", "base64": text[:20] + "\n" + text[20:]},
        "base64 as image": {"type": "image", "image": text},
        "image_url": {"type": "image_url", "image_url": url},
        "image_url map": {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        "input_image": {"type": "input_image", "image_url": url, "detail": "auto"},
        "image_pil": {"type": "image_pil", "image_pil": RED},
        "source": {"type": "image", "source": source},
        "no type": {"image": RED},
        "nulls": {"type": "image", "image": RED, "text": None, "url": None},
    }


def test_a_part_that_names_its_picture_is_that_picture(tmp_path):
    for form, part in parts(tmp_path).items():
        words = {"type": "input_text" if form == "input_image" else "text", "text": "What?"}
        chat = [{"role": "user", "content": [part, words]}]
        assert to_prompt(hd.Request(chat), "<image>").pictures == (load_picture(RED),), form
        both = [{"role": "user", "content": [{"type": "image"}, part, words]}]
        placed = to_prompt(hd.Request(both, [BLUE]), "<image>").pictures
        assert placed == (load_picture(BLUE), load_picture(RED)), form
        with pytest.raises(InvalidRequest, match=r"name 1 image.s. themselves but 1 image.s. were"):
            to_prompt(hd.Request(chat, [BLUE]), "<image>")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"type": "image", "pth": "a.png"}, "says 'pth', which nobody reads"),
        ({"type": "image", "image": RED, "url": "x"}, "image and url in one part"),
        ({"type": "image", "min_pixels": 3}, "says 'min_pixels'"),
        ({"type": "image", "url": 7}, "url needs a url"),
        ({"type": "image", "image": 0}, "type int is no picture"),
        ({"type": "image", "url": "https://a.b/c.png"}, "remote pictures are not fetched"),
        ({"type": "image_url"}, "image_url needs a url"),
        ({"type": "image_url", "image_url": {}}, "needs a url"),
        ({"type": "input_image", "file_id": "file-1"}, "says 'file_id'"),
        ({"type": "text"}, "needs its text"),
        ({"type": "video", "video": "a.mp4"}, "is a video, and only pictures"),
        ({"type": "image", "base64": "no!"}, "not a base64"),
        (7, "must be text or a map"),
    ],
)
def test_parts_that_say_what_nobody_reads_are_refused(part, why):
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with pytest.raises(InvalidRequest, match=why):
        to_prompt(hd.Request(chat, [BLUE]), "<image>")
