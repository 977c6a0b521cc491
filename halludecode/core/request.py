"""What a user asks: a question about pictures, and how its answer is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from halludecode.core.errors import InvalidParameter

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
        stops = cast("tuple[Any, ...]", self.stop)  # whatever callers gave
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
            ("stop", all(isinstance(s, str) and s for s in stops), "non-empty strings"),
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
