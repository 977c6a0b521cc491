"""Bad pictures give one sentence each; good ones arrive upright and in RGB."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.images import load_picture


def png(size=(6, 4), mode="RGB", **save) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 7).save(out, "PNG", **save)
    return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG that claims side x side pixels with next to no data behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def test_every_form_of_one_picture_is_equal(tmp_path):
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = [data, tmp_path / "a.png", str(tmp_path / "a.png"), url, Image.open(io.BytesIO(data))]
    assert len({load_picture(form).key for form in forms}) == 1


def test_pictures_arrive_upright_and_in_rgb(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_picture(tmp_path / "turned.jpg").image.size == (4, 6)
    for mode in ("L", "RGBA", "P", "1"):
        assert load_picture(png(mode=mode)).image.mode == "RGB"


def test_bad_pictures_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(png((200, 200), compress_level=0)[:3000])
    (tmp_path / "huge.png").write_bytes(huge_png(50_000))
    (tmp_path / "large.png").write_bytes(huge_png(10_000))
    cases = {
        tmp_path / "empty.png": "empty.png is empty",
        tmp_path / "text.png": "not a readable picture",
        tmp_path / "cut.png": "damaged or cut short",
        tmp_path / "huge.png": "too large",
        tmp_path / "large.png": "10000 x 10000 pixels",
        tmp_path / "none.png": "no such image file",
        tmp_path: "cannot be read",
        "data:image/png;base64,@@": "not a base64 data URL",
        "https://example.org/a.png": "not fetched",
        b"": "is empty",
        3: "an object of type int is no picture",
    }
    for source, words in cases.items():
        with pytest.raises(InvalidRequest, match=words) as caught:
            load_picture(source, "image 1")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x18ftypmp42",
        b"\x00\x00\x00\x08moov",
        b"\x1a\x45\xdf\xa3webm",
        b"RIFF\x00\x00\x00\x00AVI LIST",
        b"\x00\x00\x01\xba",
    ],
)
def test_a_video_is_told_how_to_become_pictures(data, tmp_path):
    (tmp_path / "x.mp4").write_bytes(data)
    for source in (data, tmp_path / "x.mp4"):
        with pytest.raises(
            InvalidRequest, match=r"is a video, .*take frames .* as pictures, in order"
        ):
            load_picture(source)
