"""A handful of prompts to find a model's constants on, such as its sink dimensions."""

from __future__ import annotations

import numpy as np
from PIL import Image

from halludecode.core.request import Request

QUESTIONS = (
    "Describe the image.",
    "Is there a dog in the image?",
    "What color is the car?",
    "How many people are there in the image?",
)


def built_in() -> list[tuple[Request, str | None]]:
    """Eight requests without known answers, half with a made picture: colour blocks, seeded."""
    rng = np.random.default_rng(0)
    requests = [Request(question) for question in QUESTIONS]
    requests += [Request(question, (_picture(rng),)) for question in QUESTIONS]
    return [(request, None) for request in requests]


def _picture(rng: np.random.Generator) -> Image.Image:
    pixels = np.linspace(60, 200, 224)[:, None, None] + rng.uniform(-30, 30, 3)
    pixels = np.broadcast_to(pixels, (224, 224, 3)).copy()
    for _ in range(6):
        x, y, size = rng.integers(0, 180), rng.integers(0, 180), rng.integers(16, 80)
        pixels[y : y + size, x : x + size] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
