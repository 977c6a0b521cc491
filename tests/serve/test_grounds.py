"""Transparent pictures lie on white, the operator's colour, or that of a trusted request."""

from __future__ import annotations

import asyncio
import base64
import io
import warnings

import pytest
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own
    from vllm.exceptions import VLLMValidationError

    from halludecode.serve import images
    from halludecode.serve.policy import Policy

BLACK, BLUE = [0, 0, 0], [0, 0, 255]


def clear_url() -> str:
    file = io.BytesIO()
    Image.new("RGBA", (2, 1), (0, 255, 0, 0)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def shade(operator, request=None, *, trusting=False):
    """Colour of a transparent pixel as rows of a strategy get it."""

    async def read():
        pictures = images.install(Policy("testbed"), operator, trusting=trusting)
        async with pictures.held([clear_url()], request) as held:
            return list(held[0].getpixel((0, 0)))

    return asyncio.run(read())


def ground(colour):
    return {"image": {"rgba_background_color": colour}}


def test_the_ground_is_the_operators_or_of_a_trusted_request():
    assert shade(None) == [255, 255, 255]
    assert shade(ground(BLACK)) == BLACK
    assert shade(ground(BLACK), ground(BLUE), trusting=True) == BLUE
    with pytest.raises(VLLMValidationError, match="disabled by default"):
        shade(None, ground(BLUE))


@pytest.mark.parametrize(
    "media", [{"image": {"ground": BLUE}}, ground("blue"), {"image": {"image_mode": "L"}}], ids=str
)
def test_options_that_nobody_reads_are_refused(media):
    with pytest.raises(VLLMValidationError, match="media_io_kwargs"):
        shade(media)
