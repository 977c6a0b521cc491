"""What every engine accepts and returns, and the base class of engines.

Nothing here imports torch or transformers: the types are shared by engines, evaluators, the command
line and the server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from halludecode.core.errors import (
    HalluDecodeError,
    HookNeverFired,
    InvalidModel,
    InvalidParameter,
    InvalidRequest,
    MissingExtra,
    OutOfMemory,
    UnknownStrategy,
    UnsupportedStrategy,
)
from halludecode.core.request import Request, Sampling

if TYPE_CHECKING:
    from numpy import ndarray

    from halludecode.core.spec import Spec

__all__ = [
    "EXTRA_ROWS",
    "FATAL",
    "Choice",
    "Chunk",
    "Engine",
    "Explain",
    "ExplainedToken",
    "Explanation",
    "ExtraRows",
    "Output",
    "Request",
    "Sampling",
    "Timings",
    "TokenLogprob",
    "engines_providing",
]

Explain = bool | Literal["maps"]  # what `generate` takes as ``explain``
ExtraRows = Literal["on_demand", "always"]  # when rows beside main begin to read
EXTRA_ROWS = ("on_demand", "always")
# Errors of the strategy, model or machine: they would repeat for every request.
FATAL = (
    HookNeverFired,
    InvalidModel,
    InvalidParameter,
    MissingExtra,
    UnknownStrategy,
    UnsupportedStrategy,
)


def checked_extra_rows(given: Any) -> ExtraRows:
    """One of the two.

    Raises:
        InvalidParameter: It is another.
    """
    if given not in EXTRA_ROWS:
        raise InvalidParameter(f'extra_rows={given!r}: it must be "on_demand" or "always".')
    return given


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of one written token under the combined distribution, before temperature."""

    token_id: int
    token: str
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExplainedToken:
    """What one written token owed to the picture.

    The distributions are the model's own: before bans, penalties, temperature and, where a strategy
    combines rows, before it does. The main row is the strategy's (its edits inside the model act),
    the other row reads the same prompt without the images.

    Args:
        text: Its part of the answer; all of them together are `Choice.text`.
        token_id: Its id.
        grounding: log p of the token with the image minus log p without it, in nats.
        entropy: Of the main row's distribution, in nats.
        mass: Share of attention on image tokens when the token was predicted: softmax weights of
            the prompt's last query, mean over heads and layers.
        maps: Per picture, float32 [rows, columns]: the same share for every patch; empty unless
            asked for, or where image tokens form no raster.
    """

    text: str
    token_id: int
    grounding: float
    entropy: float
    mass: float
    maps: tuple[ndarray, ...] = field(default=(), compare=False, repr=False)

    @property
    def map(self) -> ndarray | None:
        """The first picture's map."""
        return self.maps[0] if self.maps else None


@dataclass(frozen=True)
class Explanation:
    """One answer, token by token."""

    tokens: tuple[ExplainedToken, ...]


@dataclass(frozen=True)
class Timings:
    """Milliseconds of this request's share (batch time / batch size), and tokens written."""

    prepare_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Choice:
    """One of ``n`` answers to a request."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" (end token or stop string) | "length"
    logprobs: tuple[TokenLogprob, ...] | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Output:
    """The answers to one request.

    Args:
        choices: ``n`` answers; ``text``, ``token_ids``, ``finish_reason``, ``logprobs`` and
            ``explanation`` are those of the first.
        strategy: Canonical strategy string with every parameter resolved.
        effect: Tokens of the first answer that differ from the plain model's own choice at that
            step; None where that is not cheaply known.
        timings: See `Timings`.
        rows: Names of the rows this request occupied in the batch, main first.
        scores: First-step combined scores (no plausibility mask) of the words asked for with
            ``score_words``.
        warnings: Sentences a user should read, such as a strategy that changed nothing.
        decided: The main row decided the first token, whatever the others hold (see
            `core.step.decided`): ``scores`` are then its own, on every engine, whether the other
            rows ran or not.
    """

    choices: tuple[Choice, ...]
    strategy: str
    effect: int | None
    timings: Timings
    rows: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    decided: bool = False

    @property
    def text(self) -> str:
        """The first answer, without special tokens and stop strings."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the first answer, the end-of-sequence token included if it was written."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why the first answer ended: "stop" or "length"."""
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """One entry per token of the first answer; None unless `Sampling.logprobs` asked."""
        return self.choices[0].logprobs

    @property
    def explanation(self) -> Explanation | None:
        """The first answer token by token; None unless asked for, and without an image."""
        return self.choices[0].explanation


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one carries the whole `Output`."""

    text: str
    token_ids: tuple[int, ...] = ()
    output: Output | None = None


class Engine(ABC):
    """A model, here or behind a server, that answers requests under any strategy it provides for.

    Attributes:
        name: Of the kind of engine: "hf", "vllm", "server".
        model_id: The model's name, as it was loaded.
        provides: Needs of strategies that are served, see `halludecode list`.
        batch_size: Most requests in one forward; None where that is not ours to choose.
        takes_bytes: Whether pictures are best handed over as the bytes of their files.
    """

    name: ClassVar[str]
    model_id: str
    provides: frozenset[str]
    batch_size: int | None = None
    takes_bytes: ClassVar[bool] = False

    @abstractmethod
    def plan(self, strategy: Spec) -> Any:
        """Compile a strategy for this model; `generate` takes the result in a spec's place."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Model, weights digest, dtype, device and library versions, for run records."""

    @abstractmethod
    def generate(
        self,
        requests: Request | Sequence[Request],
        strategy: Any = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
        explain: Explain = False,
    ) -> list[Output]:
        """Answers in the order of the requests."""

    def generate_each(
        self,
        requests: Sequence[Request],
        strategy: Any = "greedy",
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[Output | HalluDecodeError]:
        """One output or error per request: what fails does not take the others along.

        Here a batch that fails is halved until the culprit is found; memory that is too small for a
        batch may do for its halves, so it is treated alike. Engines that answer requests apart from
        each other do it without.

        Args:
            requests: See `generate`, as the rest.
            strategy: What acts.
            sampling: How tokens are drawn.
            score_words: Words whose scores are wanted.

        Raises:
            HalluDecodeError: One of `FATAL`.
        """
        if not requests:
            return []
        try:
            return list(self.generate(requests, strategy, sampling, score_words=score_words))
        except FATAL:
            raise
        except (HalluDecodeError, RuntimeError, MemoryError) as error:
            failure = _failure(error)
            if failure is None:
                raise
            if len(requests) == 1:
                return [failure]
        middle = len(requests) // 2
        return [
            outcome
            for half in (requests[:middle], requests[middle:])
            for outcome in self.generate_each(half, strategy, sampling, score_words=score_words)
        ]

    def generate_settings(
        self,
        requests: Sequence[Request],
        strategies: Sequence[Any],
        sampling: Sampling | None = None,
        *,
        score_words: Sequence[str] = (),
    ) -> list[list[Output | HalluDecodeError]]:
        """Per strategy what `generate_each` gives; an engine may share what strategies agree in."""
        each = {"score_words": score_words}
        return [self.generate_each(requests, s, sampling, **each) for s in strategies]

    def stream(
        self, request: Request, strategy: Any = "greedy", sampling: Sampling | None = None
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last one carries the `Output`.

        Here the answer comes in one piece.

        Raises:
            InvalidRequest: More than one answer is asked for.
        """
        sampling = one_answer(sampling)
        output = self.generate([request], strategy, sampling)[0]
        yield Chunk(output.text, output.token_ids, output)


def one_answer(sampling: Sampling | None) -> Sampling:
    """How the one answer of a stream is drawn.

    Raises:
        InvalidRequest: More than one answer is asked for.
    """
    sampling = sampling or Sampling()
    if sampling.n != 1:
        raise InvalidRequest("stream() writes one answer; use generate() for n > 1.")
    return sampling


def _failure(error: Exception) -> HalluDecodeError | None:
    """The error as one sentence; None for what is no failure of a request."""
    full = isinstance(error, OutOfMemory | MemoryError)
    if not full and type(error).__name__ != "OutOfMemoryError":  # torch's
        return error if isinstance(error, HalluDecodeError) else None
    said = next(iter(str(error).splitlines()), "") or "Out of memory."
    said = said.partition(" Try batch_size=")[0].rstrip(".")  # which does not help a lone request
    return OutOfMemory(f"{said}, with one request alone; use a smaller picture, model or dtype.")


def engines_providing(needs: frozenset[str]) -> tuple[str, ...]:
    """Names of the engines of this installation's code that serve all of ``needs``."""
    from halludecode.engines import PROVIDES

    return tuple(name for name, provides in PROVIDES.items() if needs <= provides)
