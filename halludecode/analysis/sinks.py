"""Attention sinks of a model: which dimensions, which tokens, how much attention they take.

    import halludecode as hd
    report = hd.sinks(hd.load("testbed-planted"))
    print(report.verdict)
    report.save("runs/sinks")      # sinks.json, sinks.png

What counts as a sink is defined in `halludecode.core.sinks`; `var` finds its dimensions by the
same survey and keeps them as an artifact (`halludecode calibrate --model M var`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.activations import ActivationRequest
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.prompt import Prompt
from halludecode.core.sinks import CLASSES, Survey, is_sink, survey, threshold
from halludecode.engines.api import Request
from halludecode.engines.base import LocalEngine, local

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray
    from PIL.Image import Image

JSON, PICTURE = "sinks.json", "sinks.png"
Given = Request | tuple[Request, str | None]


@dataclass(frozen=True)
class SinkExample:
    """One picture with its sinks.

    Args:
        image: As the model sees it.
        sinks: bool [rows, columns] of its image tokens: sinks in at least half of the layers read.
        attention: float32 [rows, columns], share of the image attention of the prompt's last token,
            mean over layers.
    """

    image: Image
    sinks: ndarray
    attention: ndarray


@dataclass(frozen=True)
class SinkReport:
    """What `sinks` found.

    Args:
        model: The model's name.
        model_digest: Identity of its weights.
        engine: Which engine looked.
        source: What it was found on, in words.
        survey: The numbers.
        example: A picture; None where no sample has one, or its tokens form no raster.
    """

    model: str
    model_digest: str
    engine: str
    source: str
    survey: Survey
    example: SinkExample | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Sink dimensions; empty where there are none."""
        return self.survey.dims

    @property
    def verdict(self) -> str:
        """One sentence."""
        return self.survey.verdict

    @property
    def flagged(self) -> float:
        """Share of image tokens that are sinks, mean over the middle layers."""
        return self.survey.share(self.survey.flagged)

    @property
    def taken(self) -> float:
        """Share of image attention that they take, mean over the middle layers."""
        return self.survey.share(self.survey.taken)

    def table(self) -> list[dict[str, float | int | bool | None]]:
        """One row per layer: mean and largest phi of each kind of token, the two shares."""
        rows: list[dict[str, float | int | bool | None]] = []
        for i, layer in enumerate(self.survey.layers):
            row: dict[str, float | int | bool | None] = {
                "layer": layer,
                "middle": layer in self.survey.middle,
            }
            for kind, (mean, most) in zip(CLASSES, self.survey.phi[i].tolist(), strict=True):
                row[f"{kind}_mean"] = None if math.isnan(mean) else mean
                row[f"{kind}_max"] = None if math.isnan(most) else most
            row["share_of_tokens"] = float(self.survey.flagged[i])
            row["share_of_attention"] = float(self.survey.taken[i])
            rows.append(row)
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, in types JSON knows."""
        return {
            "sinks": 1,
            "model": self.model,
            "model_digest": self.model_digest,
            "engine": self.engine,
            "source": self.source,
            "samples": self.survey.samples,
            "pictures": self.survey.pictures,
            "tau": self.survey.tau,
            "dims": list(self.dims),
            "verdict": self.verdict,
            "share_of_tokens": self.flagged,
            "share_of_attention": self.taken,
            "refused": {str(j): reason for j, reason in self.survey.refused.items()},
            "layers": self.table(),
        }

    def plot(self) -> Figure:
        """The report as a Matplotlib figure, 900 pixels wide.

        Raises:
            MissingExtra: Matplotlib is not installed.
        """
        from halludecode.analysis.sinks_plot import draw

        return draw(self)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write the numbers and the picture; gives their paths.

        Raises:
            InvalidData: The folder cannot be written.
            MissingExtra: Matplotlib is not installed.
        """
        figure, folder = self.plot(), Path(folder)
        numbers, picture = folder / JSON, folder / PICTURE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
            numbers.write_text(text + "\n", encoding="utf-8")
            figure.savefig(picture)
        except OSError as error:
            raise InvalidData(
                f"{folder} cannot be written ({error.strerror}); choose another folder."
            ) from None
        return numbers, picture


def sinks(
    engine: Any,
    samples: Iterable[Given] | None = None,
    *,
    tau: float | None = None,
    source: str = "",
    progress: bool = False,
) -> SinkReport:
    """Look for attention sinks on a loaded model.

    Args:
        engine: From `halludecode.load`, either engine.
        samples: Requests, alone or with an answer (which is not used); pictures given as paths are
            opened one at a time. None is eight built-in prompts, half with made pictures.
        tau: Threshold of phi; None is 20 * sqrt(D / 4096).
        source: Where the samples are from, for the record.
        progress: Show a bar on standard error.

    Raises:
        InvalidParameter: tau is not above 0, or there are no samples.
        InvalidRequest: A picture cannot be read, or the engine cannot show activations (a running
            server).
    """
    if tau is not None and not (math.isfinite(tau) and tau > 0):
        raise InvalidParameter(f"tau={tau}: it must be above 0.")
    requests = _requests(samples)
    engine = local(engine)
    m, prompts = engine.model_info, _Prompts(engine, requests)
    activations = partial(engine.activations, remember=False)  # they would fill the memory
    with engine.guard():
        surveyed = survey(activations, prompts, m, threshold(m, tau), _tracker(progress))
        example = _example(engine, activations, prompts, surveyed)
    about = engine.describe()
    kind = "built-in prompts" if samples is None else "samples"
    where_from = f"{len(requests)} {kind}" + (f" of {source}" if source else "")
    return SinkReport(
        about["model"], about["model_digest"], engine.name, where_from, surveyed, example
    )


class _Prompts(Sequence[Prompt]):
    """Requests as prompts, each made when it is asked for, so that few pictures are open."""

    def __init__(self, engine: LocalEngine, requests: Sequence[Request]) -> None:
        self.requests, self._engine = requests, engine

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, at: Any) -> Any:
        return self._engine.prompt_of(self.requests[at])


def _requests(samples: Iterable[Given] | None) -> list[Request]:
    from halludecode.calibration.builtin_prompts import built_in

    chosen = built_in() if samples is None else samples
    requests = [each if isinstance(each, Request) else each[0] for each in chosen]
    if not requests:
        raise InvalidParameter("No samples to look for sinks on: give at least one request.")
    return requests


def _tracker(progress: bool) -> Any:
    from tqdm import tqdm

    return lambda prompts: tqdm(prompts, "sinks", disable=not progress, dynamic_ncols=True)


def _example(
    engine: LocalEngine, activations: Any, prompts: _Prompts, surveyed: Survey
) -> SinkExample | None:
    """The first picture that has a raster, with its sinks."""
    import numpy as np

    for i, prompt in _pictured(prompts):
        before = tuple(layer - 1 for layer in surveyed.middle)
        seen = activations(
            ActivationRequest(prompt, hidden=before, image=surveyed.middle, every_token=True)
        )
        first, rows, columns = seen.image_spans[0]
        if rows == 1 or columns == 1:
            return None
        first_picture = slice(first, first + rows * columns)
        flags = [is_sink(x, dims=surveyed.dims, tau=surveyed.tau) for x in seen.hidden]
        votes = sum(flag[seen.image_mask][first_picture].float() for flag in flags) / len(flags)
        weights = seen.image.sum(1)  # [layers, N]
        share = (weights / weights.sum(-1, keepdim=True)).mean(0)[first_picture]
        shape = (rows, columns)
        return SinkExample(
            engine.rows(prompts.requests[i])["main"].picture(),
            (votes >= 0.5).reshape(shape).numpy(),
            np.asarray(share.reshape(shape), dtype="float32"),
        )
    return None


def _pictured(prompts: _Prompts) -> Iterator[tuple[int, Prompt]]:
    for i in range(len(prompts)):
        prompt = prompts[i]
        if prompt.pictures:
            yield i, prompt
