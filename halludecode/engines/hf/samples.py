"""A handful of prompts to find a model's constants on, such as its sink dimensions."""

from __future__ import annotations

import numpy as np
from PIL import Image

from halludecode.core.prompt import Picture, Prompt, Turn

QUESTIONS = (
    "Describe the image.",
    "Is there a dog in the image?",
    "What color is the car?",
    "How many people are there in the image?",
)


def calibration_prompts() -> list[Prompt]:
    """Eight prompts, half with a made picture: blocks of colour over a gradient, seeded."""
    rng = np.random.default_rng(0)
    prompts = [Prompt((Turn("user", (question,)),)) for question in QUESTIONS]
    for question in QUESTIONS:
        prompts.append(Prompt((Turn("user", (Picture.of(_picture(rng)), question)),)))
    return prompts


def _picture(rng: np.random.Generator) -> Image.Image:
    pixels = np.linspace(60, 200, 224)[:, None, None] + rng.uniform(-30, 30, 3)
    pixels = np.broadcast_to(pixels, (224, 224, 3)).copy()
    for _ in range(6):
        x, y, size = rng.integers(0, 180), rng.integers(0, 180), rng.integers(16, 80)
        pixels[y : y + size, x : x + size] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
