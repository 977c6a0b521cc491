"""Samples for measuring heads: a folder of pictures, labelled questions, pictures to describe.

Sources are those of `eval` (`evals.load`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from halludecode.analysis.head_sensitivity import HeadSample
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.engines.api import Request
from halludecode.evals.benchmarks.registry import choose, standard_of
from halludecode.evals.data.entries import Selection
from halludecode.evals.data.samples import EvalImage, EvalUnit, Sample
from halludecode.evals.load import load_units
from halludecode.evals.presets import describing, preset_for

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def from_folder(
    folder: Path,
    prompt: str | None,
    model: str,
    preset: str | None = None,
    limit: int | None = None,
) -> list[HeadSample]:
    """Every picture of a folder under one prompt; nothing is known of what is right.

    Args:
        folder: Its pictures are taken by name.
        prompt: What is asked; None takes the preset's words for a description.
        model: The model's name; it chooses the default preset.
        preset: Prompt preset, as for `eval`.
        limit: First N pictures.

    Raises:
        InvalidData: There is no such folder, or no picture in it.
        InvalidRequest: A picture cannot be read.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InvalidData(f"{folder}: cannot be read ({error.strerror}).") from None
    if not files:
        raise InvalidData(f"{folder}: holds no pictures ({', '.join(SUFFIXES)}).")
    words = prompt or describing(preset, model)[1].prompt("caption", "")
    pictures = (EvalImage.from_file(file, file.name).load() for file in files[:limit])
    return [HeadSample(Request(words, (picture,))) for picture in pictures]


def from_data(
    sources: Sequence[str],
    task: str | None,
    model: str,
    *,
    images: Path | None = None,
    annotations: Path | None = None,
    preset: str | None = None,
    limit: int | None = None,
) -> list[HeadSample]:
    """Labelled samples.

    Args:
        sources: Testbed names, folders or hub ids.
        task: A benchmark of questions with yes or no (of every picture those of one split), or of
            pictures to describe, with their true objects; None takes POPE.
        model: The model's name; it chooses the default preset.
        images: Folder of pictures, with ``annotations``.
        annotations: POPE question file or COCO instances file.
        preset: Prompt preset, as for `eval`.
        limit: First N pictures of every source.

    Raises:
        InvalidParameter: There is no such benchmark, or nothing is known of its answers.
        HalluDecodeError: As `load_units`.
    """
    (benchmark,) = choose(task or standard_of("yes_no").name)
    if benchmark.text_kind == "choice":
        raise InvalidParameter(
            f"Heads are measured by yes/no answers or by objects; {benchmark.name} has neither."
        )
    preset_used = preset_for(preset, model, [benchmark])[1]
    benchmark = benchmark.settled(preset_used)
    fewer = {} if limit is None else {"testbed_images": limit}  # no more than are wanted
    chosen = Selection((benchmark,), {benchmark.name: preset_used}, limit=limit, **fewer)
    units = load_units(sources, chosen, images, annotations)
    return [
        HeadSample(Request(s.prompt, (s.picture.load(),)), s.label, s.objects)
        for s in _in_turn(units)
        if s.picture.digest  # some questions are asked without a picture
    ]


def _in_turn(units: Sequence[EvalUnit]) -> Iterator[Sample]:
    """Every picture with the questions of one split: splits share most of their questions."""
    names = dict.fromkeys(s.picture.name for unit in units for s in unit.samples)
    turn = {name: i % len(units) for i, name in enumerate(names)}
    return (s for i, unit in enumerate(units) for s in unit.samples if turn[s.picture.name] == i)
