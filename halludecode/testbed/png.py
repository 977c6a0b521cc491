"""Writes PNG files whose bytes are the same everywhere: pixels are stored, not compressed.

Deflate libraries choose different encodings for the same pixels. The pictures are noisy and would
hardly shrink anyway.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

_BLOCK = 65535  # longest stored block of deflate


def encode(image: np.ndarray) -> bytes:
    """Encodes an RGB picture.

    Args:
        image: uint8 [height, width, 3].

    Returns:
        The file's bytes.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a leading 0 a row: no filter
    rows[:, 1:] = image.reshape(height, -1)
    data = rows.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x78\x01" + _stored(data) + struct.pack(">I", zlib.adler32(data))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _stored(data: bytes) -> bytes:
    out = []
    for start in range(0, len(data), _BLOCK):
        part = data[start : start + _BLOCK]
        last = start + _BLOCK >= len(data)
        out.append(struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part)
    return b"".join(out)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
