"""From what a user hands over (path, bytes, data URL, PIL image) to a `Picture`, within limits."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Picture
from halludecode.engines.inputs.pixels import as_rgb, from_array, is_array
from halludecode.testbed.assets import named_picture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs
BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")  # how pictures begin

VIDEO = (
    "is a video, and only pictures are read: take frames from it, such as with 'ffmpeg -i VIDEO "
    "-vf fps=1 frame_%03d.png', and give them as pictures, in order."
)


def is_video(data: bytes) -> bool:
    """Whether bytes that are no picture begin as MP4, MOV, Matroska, WebM, AVI or MPEG do."""
    starts = (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
    return (
        data.startswith(starts)
        or data[4:8] in (b"ftyp", b"moov", b"mdat")
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
    )


def load_picture(source: Any, where: str = "image", background: Any = "white") -> Picture:
    """Decode one picture, upright and in RGB; of an animated one the first frame.

    What lies behind transparent pixels is one ground, white unless another is asked for. Numbers of
    more than 8 bits are scaled, not clipped, see `pixels.as_rgb`.

    Args:
        source: PIL image, path, ``testbed:N``, file URL, bytes, data URL or base64 text, or an
            array or tensor of pixels, see `pixels.from_array`.
        where: How messages name it.
        background: The ground: a colour's name, "#rrggbb", or three integers in 0..255.

    Raises:
        InvalidRequest: Missing, empty, unreadable, truncated, without a range that can be told, or
            above `MAX_PIXELS` (refused before decoding).
    """
    from PIL import Image

    if isinstance(source, Picture):
        return source
    if is_array(source):
        source = from_array(source, where)
    if isinstance(source, Image.Image):
        _check_size(source, where)
        return Picture.of(_upright(source, where, background))
    name, data = _read(source, where)
    if not data:
        raise InvalidRequest(f"{name} is empty (0 bytes); give a PNG, JPEG or WebP file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        size = str(error).split(",")[0]  # "Image size (n pixels) exceeds limit of m pixels"
        raise InvalidRequest(f"{name} is too large: {size}; scale it down first.") from None
    except (OSError, ValueError, SyntaxError):
        if is_video(data):
            raise InvalidRequest(f"{name} {VIDEO}") from None
        raise InvalidRequest(
            f"{name} is not a readable picture; give a PNG, JPEG or WebP file."
        ) from None
    _check_size(image, name)
    return Picture.of(_upright(image, name, background))


def _check_size(image: Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are "
            "accepted; scale it down first."
        )
    if width < 1 or height < 1:
        raise InvalidRequest(
            f"{name} has {width} x {height} pixels; a picture needs at least 1 x 1."
        )


def _upright(image: Image, name: str, background: Any) -> Image:
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is not the reader's concern
            image.load()
            with contextlib.suppress(struct.error, ValueError, KeyError, TypeError, OSError):
                image = ImageOps.exif_transpose(image)  # unreadable: the picture as it is stored
            return as_rgb(image, name, background)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidRequest(f"{name} is damaged or cut short ({error}); save it again.") from None


def _read(source: Any, where: str) -> tuple[str, bytes]:
    if isinstance(source, bytes | bytearray):
        return where, bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        head, comma, body = source.partition(",")
        data = _decoded(body) if comma and ";base64" in head.lower() else None
        if data is None:
            raise InvalidRequest(f"{where}: not a base64 data URL (data:image/png;base64,...).")
        return where, data
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"{where}: remote pictures are not fetched; download {source} and give its path."
        )
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise InvalidRequest(
            f"{where}: an object of type {kind} is no picture; give a path, bytes, data URL, PIL "
            "image or array."
        )
    path = named_picture(source) or source
    if isinstance(source, str) and source[:7].lower() == "file://":
        path = unquote(source[7:].removeprefix("localhost"))
    try:
        return str(source), Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, an unknown ~user
        data = _decoded(source) if str(source).startswith(BASE64) else None
        if data is not None:
            return where, data
        shown = str(source) if len(str(source)) <= 300 else f"{where} ({str(source)[:80]}...)"
        if isinstance(error, FileNotFoundError):
            raise InvalidRequest(f"{shown}: no such image file.") from None
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{shown}: cannot be read ({why}).") from None


def _decoded(text: Any) -> bytes | None:
    """Bytes of base64 text, line breaks in it or not; None where it is none."""
    try:
        return base64.b64decode("".join(str(text).split()), validate=True)
    except (ValueError, binascii.Error):
        return None
