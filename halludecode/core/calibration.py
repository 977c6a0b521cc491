"""What a strategy's `calibrate` may ask of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.activations import ActivationRequest, Activations
    from halludecode.core.prompt import Prompt
    from halludecode.core.strategy import Strategy


class CaptionPair(NamedTuple):
    """Two captions of one picture, alike but for what only one of them makes up."""

    true: str
    hallucinated: str


class LabelledCaption(NamedTuple):
    """What a model said of a picture, and at which characters the things begin that it names."""

    text: str
    real: tuple[int, ...]
    hallucinated: tuple[int, ...]


def _cannot(*_: object) -> Any:
    raise InvalidParameter(
        "This calibration gives prompts and activations, not scores or training."
    )


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` may ask of the engine.

    Args:
        samples: Prompts to find a model's constants on.
        activations: Passes of the plain model.
        answers: The right answer to each sample where the data has one: "yes", "no", a caption; two
            captions, or a labelled one, for strategies that ask for them (`Strategy.samples`).
        score: ``(strategy, artifact) -> float``, higher is better: the share of yes/no samples
            answered rightly; where no sample has such an answer, minus the mean entropy in nats of
            the first token's distribution (ZeroTuning's supervised and unsupervised searches).
        soft_prompt: ``() -> tensors``: "soft" float32 [n, D], trained to stand for picture features
            with the model frozen (`halludecode.engines.hf.soft_prompt`).
        track: Shows progress over an iterable.
        notes: Sentences on what was found; kept with the artifact.
    """

    samples: Sequence[Prompt]
    activations: Callable[[ActivationRequest], Activations]
    answers: Sequence[str | CaptionPair | LabelledCaption | None] = ()
    score: Callable[[Strategy, Mapping[str, Tensor]], float] = _cannot
    soft_prompt: Callable[[], Mapping[str, Tensor]] = _cannot
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter
    notes: list[str] = field(default_factory=list[str])

    @property
    def pairs(self) -> list[tuple[Prompt, CaptionPair]]:
        """Samples with two captions.

        Raises:
            InvalidParameter: There are none.
        """
        found = [
            (prompt, answer)
            for prompt, answer in zip(self.samples, self.answers, strict=True)
            if isinstance(answer, CaptionPair) and prompt.pictures
        ]
        if not found:
            raise InvalidParameter(
                "This calibration reads pairs of captions, a true and a hallucinated one of each "
                "picture, and there are none: give --images FOLDER --annotations FILE, lines of "
                '{"image": NAME, "value": CAPTION, "h_value": HALLUCINATED}, or a folder with '
                "COCO's captions and instances."
            )
        return found

    @property
    def labelled(self) -> list[tuple[Prompt, LabelledCaption]]:
        """Samples whose things are labelled.

        Raises:
            InvalidParameter: There are none.
        """
        found = [
            (prompt, answer)
            for prompt, answer in zip(self.samples, self.answers, strict=True)
            if isinstance(answer, LabelledCaption) and prompt.pictures
        ]
        if not found:
            raise InvalidParameter(
                "This calibration reads the model's own captions with what they make up, and there "
                "are none: run `halludecode eval --tasks chair --strategy greedy --output RUN` and "
                "give --images FOLDER (or testbed-dev-iid) --annotations RUN/samples.jsonl."
            )
        return found

    @property
    def supervised(self) -> bool:
        """Whether `score` is accuracy."""
        return any(answer in ("yes", "no") for answer in self.answers)
