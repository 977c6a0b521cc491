"""One answer beside its pictures, as a page: what each word owed to the image, in one file.

The caption with its shades, the flags and every number are there without a script; the maps over
the pictures need the one the page holds. The page forbids itself every request.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halludecode.analysis.grounding import SIGNALS, Threshold, Word, load_threshold, words
from halludecode.analysis.token_activation import maps_of
from halludecode.core.errors import InvalidData, InvalidRequest, UnsupportedStrategy
from halludecode.engines.api import Choice, Explanation, Output, Request

if TYPE_CHECKING:
    from PIL.Image import Image

Maps = Sequence[Sequence[np.ndarray]]  # per token and picture, [rows, columns]
LIMIT = 3.0  # nats at which a shade is full: 20 times as likely, or as unlikely
NONE, MORE, LESS = (255, 255, 255), (104, 171, 222), (243, 166, 82)  # white, blue, orange
SMALL = 200_000  # pixels up to which a picture is kept without loss
SCALE = (-LIMIT, -LIMIT / 2, 0.0, LIMIT / 2, LIMIT)


def check_target(path: Path) -> None:
    """Raise InvalidData if a page cannot be written there; before a model is loaded for it."""
    folder = path.parent
    if path.is_dir():
        raise InvalidData(f"{path} is a folder; name a file, such as {path / 'explained.html'}.")
    if not folder.is_dir():
        raise InvalidData(f"{path} cannot be written: there is no folder {folder}; make it first.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InvalidData(f"{path} cannot be written (permission denied); choose another place.")


def write_page(path: Path, engine: Any, request: Request, output: Output) -> None:
    """Write the page of one explained answer.

    Raises:
        InvalidData: The file cannot be written.
        InvalidRequest: The answer was not explained.
    """
    row = engine.rows(request, "greedy")["main"]
    pictures = [row.picture(i) for i in range(len(row.images))]
    warnings, activations = list(output.warnings), list[Maps]()
    try:
        activations = [maps_of(engine, request, choice) for choice in output.choices]
    except (UnsupportedStrategy, InvalidRequest) as error:
        warnings.append(str(error))
    told = replace(output, warnings=tuple(warnings))
    text = render(request, told, pictures, engine.describe(), activations=activations)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidData(
            f"{path} cannot be written ({error.strerror}); choose another place."
        ) from None


def render(
    request: Request,
    output: Output,
    pictures: Sequence[Image],
    about: Mapping[str, Any],
    threshold: Threshold | None = None,
    activations: Sequence[Maps] = (),
) -> str:
    """The page.

    Args:
        request: What was asked.
        output: Explained answers.
        pictures: As the model saw them, so that maps fit.
        about: What the engine says of itself (`describe`).
        threshold: For the flags; None is the shipped one.
        activations: Per answer, `token_activation.maps_of`; empty where there are none.

    Raises:
        InvalidRequest: ``output`` has no explanation.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if output.explanation is None:
        raise InvalidRequest("This answer has no explanation: ask for one, with an image.")
    threshold = threshold or load_threshold()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    maps = list(activations) or [()] * len(output.choices)
    answers = [
        _answer(i, choice, threshold, own)
        for i, (choice, own) in enumerate(zip(output.choices, maps, strict=True), start=1)
    ]
    digest = str(about.get("model_digest", ""))
    return environment.get_template("grounding.html.j2").render(
        question=_question(request),
        pictures=[_embedded(picture) for picture in pictures],
        answers=answers,
        data={answer["id"]: answer.pop("data") for answer in answers},
        mapped=bool(output.explanation.tokens and output.explanation.tokens[0].maps),
        activated=any(activations),
        strategy=output.strategy,
        warnings=output.warnings,
        recipe=_recipe(output, about),
        below=threshold.below,
        trust=threshold.described(digest),
        several=_several(threshold),
        scale=[(_nats(x), _colour(x)) for x in SCALE],
        more=f"{math.exp(LIMIT):.0f}",
    )


def _question(request: Request) -> str:
    """The words of the last user turn."""
    if isinstance(request.prompt, str):
        return request.prompt
    content = request.prompt[-1].get("content", "")
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return " ".join(part for part in parts if part)


def _several(threshold: Threshold) -> str:
    """How a word's numbers are made of its tokens', in words."""
    named = {"grounding": "grounding", "entropy": "entropy", "mass": "image attention"}
    how = {"mean": "the mean", "max": "the largest"}
    each = [f"{how[threshold.reduce[signal]]} {named[signal]}" for signal in SIGNALS]
    return ", ".join(each)


def _recipe(output: Output, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = f"{about.get('model')} (weights {str(about.get('model_digest'))[:16]})"
    how = f"{about.get('engine')}, {about.get('dtype')} on {about.get('device')}"
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    return [
        ("model", weights),
        ("engine", f"{how}; {versions}"),
        ("strategy", output.strategy),
        ("rows", ", ".join(output.rows)),
    ]


# One answer --------------------------------------------------------------------------------------


def _answer(number: int, choice: Choice, threshold: Threshold, maps: Maps) -> dict[str, Any]:
    explanation = choice.explanation or Explanation(())
    shaded = words(explanation, threshold)
    objects = [word for word in shaded if word.object is not None]
    return {
        "id": f"a{number}",
        "pieces": _pieces(choice.text, shaded),
        "finish": choice.finish_reason,
        "objects": len(objects),
        "ungrounded": sum(word.ungrounded for word in objects),
        "tokens": [
            (token.text.strip() or f"(token {token.token_id})", *_row(vars(token)))
            for token in explanation.tokens
        ],
        "data": [_spot(word, explanation, maps) for word in shaded],
    }


def _pieces(text: str, shaded: Sequence[Word]) -> list[dict[str, Any]]:
    """The answer in order: words with their shade, and what stands between them."""
    pieces: list[dict[str, Any]] = []
    at = 0
    for place, word in enumerate(shaded):
        if word.start > at:
            pieces.append({"between": text[at : word.start]})
        at = word.start + len(word.text)
        value = word.values["grounding"]
        named = f", {'ungrounded ' if word.ungrounded else ''}object" if word.object else ""
        pieces.append(
            {
                "place": place,
                "text": word.text,
                "colour": _colour(value),
                "object": word.object,
                "ungrounded": word.ungrounded,
                "focus": any(letter.isalnum() for letter in word.text),
                "label": f"{word.text}{named}, grounding {_nats(value)} nats",
            }
        )
    return [*pieces, {"between": text[at:]}] if at < len(text) else pieces


def _row(values: Mapping[str, Any]) -> tuple[str, str, str]:
    """Grounding, entropy and mass, as shown."""
    grounding, entropy, mass = (values[signal] for signal in SIGNALS)
    return _nats(grounding), f"{entropy:.2f}", f"{mass:.1%}"


def _spot(word: Word, explanation: Explanation, maps: Maps) -> dict[str, Any]:
    """What the page shows of a word that is pointed at."""
    grounding, entropy, mass = _row(word.values)
    tokens = [explanation.tokens[i] for i in word.tokens]
    grids = [np.mean(maps, axis=0) for maps in zip(*(token.maps for token in tokens), strict=True)]
    peak = max((float(grid.max()) for grid in grids), default=0.0)
    own = [maps[i] for i in word.tokens if i < len(maps)]
    active = [np.mean(each, axis=0) for each in zip(*own, strict=True)]
    highest = max((float(grid.max()) for grid in active), default=0.0)
    return {
        "word": word.text,
        "about": _about(word),
        "grounding": f"{grounding} nats",
        "times": _times(word.values["grounding"]),
        "entropy": f"{entropy} nats",
        "mass": mass,
        "parts": [f"{token.text.strip()} {_nats(token.grounding)}" for token in tokens]
        if len(tokens) > 1
        else [],
        "peak": f"{peak:.1%}",
        "maps": [_grid(grid, peak) for grid in grids],
        "activations": [_grid(grid, highest) for grid in active],
    }


def _about(word: Word) -> str:
    """Whether a word is an object word, which object it names, and whether it is flagged."""
    if word.object is None:
        return ""
    named = "object word" if word.text.lower() == word.object else f"object: {word.object}"
    return f"{'ungrounded ' if word.ungrounded else ''}{named}"


def _grid(grid: np.ndarray, peak: float) -> dict[str, Any]:
    """One map in 256 steps of the word's largest value."""
    steps = np.rint(grid / peak * 255) if peak > 0 else np.zeros_like(grid)
    code = base64.b64encode(steps.astype(np.uint8).tobytes()).decode("ascii")
    return {"rows": grid.shape[0], "columns": grid.shape[1], "values": code}


def _nats(value: float) -> str:
    """A signed number with two decimals and a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}").replace("+0.00", "0.00")


def _times(value: float) -> str:
    """A grounding in words."""
    factor = math.exp(min(abs(value), 50))
    if factor < 1.05:
        return "as likely with the image as without"
    size = f"{factor:.1f}" if factor < 10 else f"{factor:.3g}"
    return f"{size}\N{MULTIPLICATION SIGN} {'as' if value > 0 else 'less'} likely with the image"


def _colour(value: float) -> str:
    """White at 0; blue where the image made a word likelier, orange where less likely."""
    share = min(abs(value) / LIMIT, 1.0)
    end = MORE if value > 0 else LESS
    mixed = (round(a + (b - a) * share) for a, b in zip(NONE, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _embedded(picture: Image) -> dict[str, Any]:
    small = picture.width * picture.height <= SMALL
    kind, options = ("png", {"optimize": True}) if small else ("jpeg", {"quality": 88})
    file = io.BytesIO()
    picture.convert("RGB").save(file, kind.upper(), **options)
    code = base64.b64encode(file.getvalue()).decode("ascii")
    size = {"width": picture.width, "height": picture.height}
    return {"url": f"data:image/{kind};base64,{code}", **size}
