"""Pictures with what every strategy said about them, for the HTML report.

The pictures are those on whose invented objects the strategies disagree most, in either direction:
they show what a strategy changes, good or bad, and are no sample of how often it does.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from halludecode.core.errors import InvalidRequest
from halludecode.engines.inputs.images import load_picture
from halludecode.evals.benchmarks.base import Mention
from halludecode.evals.benchmarks.registry import benchmark_named
from halludecode.evals.results.build import BASELINE, Answers
from halludecode.evals.results.chosen_samples import any_line, disputed
from halludecode.evals.results.kept_pictures import picture_path

SIZE = 240  # pixels of the longer side on the page


@dataclass(frozen=True)
class Scene:
    """One picture of the gallery.

    Args:
        name: Name of the picture.
        objects: True objects; None where they are not known.
        captions: (strategy as asked for, caption as HTML with invented objects struck out, number
            of them; None where unknown).
        source: Data URI of the picture, or None.
    """

    name: str
    objects: Sequence[str] | None
    captions: Sequence[tuple[str, str, int | None]]
    source: str | None


def scenes(group: Answers, folder: Path, labels: Mapping[str, str]) -> list[Scene]:
    """The gallery of one caption task."""
    benchmark = benchmark_named(group.task)
    order = sorted(group.lines, key=lambda name: name != BASELINE)
    shown = []
    for i in disputed(group):
        first = any_line(group, i)
        captions = []
        for strategy in order:
            for lines in group.lines[strategy].values():
                if line := lines.get(i):
                    text = group.scored_text(line)
                    mentions = benchmark.mentions(text, line, group.families)
                    captions.append((labels.get(strategy, strategy), *strike(text, mentions)))
        path = picture_path(folder, group.data, first["image"])
        source = data_uri(path.read_bytes()) if path.is_file() else None
        shown.append(Scene(first["image"], first.get("objects"), captions, source))
    return shown


def strike(caption: str, mentions: Sequence[Mention] | None) -> tuple[str, int | None]:
    """A caption as HTML: invented objects struck out and followed by a cross, true ones underlined.

    Args:
        caption: The model's words.
        mentions: The objects it names; None marks nothing.

    Returns:
        The HTML, and the number of mentions struck out, None where they are unknown.
    """
    if mentions is None:
        return html.escape(caption), None
    pieces, start = [], 0
    for mention in mentions:
        word = html.escape(caption[mention.start : mention.end])
        pieces.append(html.escape(caption[start : mention.start]))
        if mention.invented:
            title = html.escape(f"no {mention.object} in the picture")
            pieces.append(
                f'<s class="wrong" title="{title}">{word}</s><sup class="cross">\N{BALLOT X}</sup>'
            )
        else:
            pieces.append(f'<span class="true">{word}</span>')
        start = mention.end
    text = "".join([*pieces, html.escape(caption[start:])])
    return text, sum(mention.invented for mention in mentions)


def data_uri(encoded: bytes, size: int = SIZE, quality: int = 88) -> str | None:
    """A picture of at most ``size`` written into the page; None for what is no picture."""
    from PIL import Image

    try:
        picture = load_picture(encoded).image  # as the model saw it
    except InvalidRequest:
        return None
    scale = min(1.0, size / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    shown = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
