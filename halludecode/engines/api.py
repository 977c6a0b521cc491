"""What every engine accepts and returns: Request, Sampling, Output, Chunk, Engine.

Nothing here imports torch or transformers: the types are shared by engines, evaluators, the command
line and the server.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from numpy import ndarray

Explain = bool | Literal["maps"]  # what `generate` takes as ``explain``
ImageLike = Any  # PIL.Image.Image | str | Path | bytes; a str is a path or a data URL


@dataclass(frozen=True)
class Request:
    """One question about zero or more pictures.

    Args:
        prompt: The user's words, or chat messages in the OpenAI form: ``[{"role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "..."}]}]``. Words without a
            placeholder are put into the model's own chat template, pictures first; words that hold
            the model's placeholder (``<image>`` for LLaVA) are used as they stand.
        images: Pictures in the order of their placeholders: PIL images, paths, bytes or data URLs.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    images: Sequence[ImageLike] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from the combined distribution; ``temperature=0`` is greedy.

    Args:
        max_new_tokens: Most tokens written.
        min_new_tokens: No end-of-sequence token before this many tokens.
        temperature: 0 takes the most likely token; otherwise scores are divided by it.
        top_p: Keep the smallest set of tokens with this probability mass.
        top_k: Keep this many tokens; 0 keeps all.
        repetition_penalty: > 1 lowers tokens already in prompt or answer (CTRL's rule).
        stop: Strings that end the answer; they are not part of it.
        seed: Seed of the counter-based noise; None draws one.
        n: Number of answers per request.
        logprobs: Number of most likely tokens reported beside the chosen one; None reports nothing.

    Raises:
        InvalidParameter: A value is out of bounds; the sentence names them.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, ">= 1"),
            (
                "min_new_tokens",
                0 <= self.min_new_tokens <= self.max_new_tokens,
                "in [0, max_new_tokens]",
            ),
            (
                "temperature",
                self.temperature >= 0 and math.isfinite(self.temperature),
                "finite and >= 0",
            ),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, ">= 0 (0 keeps all tokens)"),
            ("repetition_penalty", self.repetition_penalty > 0, "> 0"),
            ("stop", all(isinstance(s, str) and s for s in self.stop), "non-empty strings"),
            ("n", self.n >= 1, ">= 1"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "None or >= 0"),
        )
        for name, holds, bounds in rules:
            if not holds:
                raise InvalidParameter(
                    f"Sampling({name}={getattr(self, name)!r}): {name} must be {bounds}."
                )
        if self.n > 1 and self.temperature == 0:
            raise InvalidParameter(
                f"Sampling(n={self.n}, temperature=0): greedy decoding gives {self.n} equal "
                "answers; set temperature > 0 or n=1."
            )


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
    """

    choices: tuple[Choice, ...]
    strategy: str
    effect: int | None
    timings: Timings
    rows: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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


class Engine(Protocol):
    """A loaded model that answers requests under any strategy whose needs it provides."""

    provides: frozenset[str]
    model_id: str

    def generate(
        self,
        requests: Request | Sequence[Request],
        strategy: Any = "greedy",
        sampling: Sampling = ...,
        *,
        score_words: Sequence[str] = (),
        explain: Explain = False,
    ) -> list[Output]:
        """Answers in the order of the requests."""
        ...

    def stream(
        self, request: Request, strategy: Any = "greedy", sampling: Sampling = ...
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last one carries the `Output`."""
        ...


def engines_providing(needs: frozenset[str]) -> tuple[str, ...]:
    """Names of the engines of this installation's code that serve all of ``needs``."""
    from halludecode.engines import PROVIDES

    return tuple(name for name, provides in PROVIDES.items() if needs <= provides)
