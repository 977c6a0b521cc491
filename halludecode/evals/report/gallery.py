"""Pictures with what every strategy said about them, for the HTML report.

The pictures are those on whose invented objects the strategies disagree most, in either direction:
they show what a strategy changes, good or bad, and are no sample of how often it does.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from halludecode.evals.benchmarks.chair import object_words as words
from halludecode.evals.data.samples import EvalImage
from halludecode.evals.report import chosen_samples as chosen
from halludecode.evals.results.build import BASELINE, Answers

FOLDER = "pictures"
SIZE = 240  # pixels of the longer side on the page
SHOWN = 8  # pictures per source


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


def choose(group: Answers, count: int = SHOWN) -> list[Any]:
    """Ids of the pictures on whose invented objects the strategies disagree most; ties by id."""
    wrong: dict[Any, list[int]] = {}
    for by_split in group.lines.values():
        for lines in by_split.values():
            for i, line in lines.items():
                wrong.setdefault(i, []).append(len(line["parsed"]["hallucinated"]))
    return sorted(wrong, key=lambda i: (min(wrong[i]) - max(wrong[i]), str(i)))[:count]


def save_pictures(
    folder: Path, groups: Iterable[Answers], pictures: Mapping[tuple[str, Any], EvalImage]
) -> None:
    """Keeps the report's pictures beside the answers, so that the folder can be reported anywhere.

    Args:
        folder: The run folder.
        groups: All answers of the run.
        pictures: Pictures by (source, anything that tells them apart); those of any task.
    """
    by_name = {(data, picture.name): picture for (data, _), picture in pictures.items()}
    by_source: dict[str, list[Answers]] = {}
    for group in groups:
        by_source.setdefault(group.data, []).append(group)
    for data, own in by_source.items():
        wanted = list(chosen.pictures(own))
        for group in own:
            if group.task == "chair":
                wanted += [_any_line(group, i)["image"] for i in choose(group)]
        for image in dict.fromkeys(wanted):
            path = picture_path(folder, data, image)
            if (data, image) in by_name:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(by_name[data, image].read())


def picture_path(folder: Path, data: str, image: str) -> Path:
    """Where a picture is kept in a run folder; names from data files never lead outside it.

    Folders in a name stay: MME has pictures of one name under several subtasks.
    """
    parts = [p for p in PurePosixPath(image.replace("\\", "/")).parts if p.strip("./ ")]
    return (folder / FOLDER / data.replace("/", "_").replace("..", "_")).joinpath(*parts)


def scenes(group: Answers, folder: Path, labels: Mapping[str, str]) -> list[Scene]:
    """The gallery of one caption task."""
    reader = words.reader(
        group.families.get("family", "wordnet"), group.families.get("path", "auto")
    )
    order = sorted(group.lines, key=lambda name: name != BASELINE)
    found = []
    for i in choose(group):
        line = _any_line(group, i)
        captions = []
        for strategy in order:
            said = group.lines[strategy].get(None, {}).get(i)
            if said:
                marked, wrong = strike(group.scored_text(said), frozenset(line["objects"]), reader)
                captions.append((labels.get(strategy, strategy), marked, wrong))
        path = picture_path(folder, group.data, line["image"])
        source = data_uri(path.read_bytes()) if path.is_file() else None
        found.append(Scene(line["image"], line["objects"], captions, source))
    return found


def _any_line(group: Answers, i: Any) -> Mapping[str, Any]:
    return next(lines[None][i] for lines in group.lines.values() if i in lines.get(None, {}))


def strike(caption: str, objects: frozenset[str] | None, reader: words.Reader) -> tuple[str, int]:
    """A caption as HTML: invented objects struck out and followed by a cross, true ones underlined.

    Args:
        caption: The model's words.
        objects: True objects; None marks nothing.
        reader: Finds the objects a caption names.

    Returns:
        The HTML, and the number of mentions struck out.
    """
    if objects is None:
        return html.escape(caption), 0
    out, at, wrong = [], 0, 0
    for mention in reader.read(caption).mentions:
        word = html.escape(caption[mention.start : mention.end])
        out.append(html.escape(caption[at : mention.start]))
        if mention.object in objects:
            out.append(f'<span class="true">{word}</span>')
        else:
            wrong += 1
            title = html.escape(f"no {mention.object} in the picture")
            out.append(
                f'<s class="wrong" title="{title}">{word}</s><sup class="cross">\N{BALLOT X}</sup>'
            )
        at = mention.end
    return "".join([*out, html.escape(caption[at:])]), wrong


def data_uri(encoded: bytes, size: int = SIZE, quality: int = 88) -> str | None:
    """A picture of at most ``size`` written into the page; None for what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    scale = min(1.0, size / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    shown = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
