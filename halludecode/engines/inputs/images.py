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

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs

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


def load_picture(source: Any, where: str = "image") -> Picture:
    """Decode one picture, upright and in RGB.

    Args:
        source: PIL image, path, bytes, or data URL.
        where: How messages name it.

    Raises:
        InvalidRequest: Missing, empty, unreadable, truncated, or above `MAX_PIXELS` (refused before
            decoding).
    """
    from PIL import Image

    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        _check_size(source, where)
        return Picture.of(_upright(source, where))
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
    return Picture.of(_upright(image, name))


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


def _upright(image: Image, name: str) -> Image:
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is not the reader's concern
            image.load()
            with contextlib.suppress(struct.error, ValueError, KeyError, TypeError, OSError):
                image = ImageOps.exif_transpose(image)  # unreadable: the picture as it is stored
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidRequest(f"{name} is damaged or cut short ({error}); save it again.") from None


def _read(source: Any, where: str) -> tuple[str, bytes]:
    if isinstance(source, bytes | bytearray):
        return where, bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        head, comma, body = source.partition(",")
        try:
            if not comma or ";base64" not in head:
                raise ValueError
            return where, base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error):
            raise InvalidRequest(
                f"{where}: not a base64 data URL (data:image/png;base64,...)."
            ) from None
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"{where}: remote pictures are not fetched; download {source} and give its path."
        )
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise InvalidRequest(
            f"{where}: an object of type {kind} is no picture; "
            "give a path, bytes, data URL or PIL image."
        )
    try:
        return str(source), Path(source).expanduser().read_bytes()
    except FileNotFoundError:
        raise InvalidRequest(f"{source}: no such image file.") from None
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, an unknown ~user
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{source!s}: cannot be read ({why}).") from None
