"""What a user asks: a question about pictures, and how its answer is drawn."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

from halludecode.core.errors import InvalidParameter

WHOLE = ("max_new_tokens", "min_new_tokens", "top_k", "n", "seed", "logprobs")
REAL = ("temperature", "top_p", "repetition_penalty")
MOST_BIAS = 100  # as in OpenAI's protocol
# PIL image, path, file URL, bytes, data URL, base64 text, numpy array or tensor
ImageLike = Any


@dataclass(frozen=True)
class Request:
    """One question about zero or more pictures.

    Args:
        prompt: The user's words, or chat messages in the OpenAI form: ``[{"role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "..."}]}]``. Words without a
            placeholder are put into the model's own chat template, pictures first; words that hold
            the model's placeholder (``<image>`` for LLaVA) are used as they stand. Here, in the
            words of messages, on the command line and in what a server is sent alike, a
            placeholder is the place of a picture: as many as there are pictures, or the request is
            refused.
            A part may name its picture itself (``image``, ``url``, ``path``, ``base64``,
            ``image_url``), and is then that picture.
        images: Pictures in the order of their placeholders: PIL images, paths, bytes, data URLs,
            arrays or tensors. Deeper pixels than 8 bits are scaled to them.
        chat_template_kwargs: What else the model's chat template reads, by name, such as
            ``{"enable_thinking": False}``; names that it does not read change nothing.
            ``add_generation_prompt`` False leaves the answer's opening out.
        continue_final_message: The last message, mostly the assistant's, is the beginning of the
            answer, which is written on from there.
        background: What transparent pictures are put on: a colour's name, "#rrggbb", or three
            integers in 0..255. White, as vLLM has it.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    images: Sequence[ImageLike] = ()
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool = False
    background: str | Sequence[int] = "white"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from the combined distribution; ``temperature=0`` is greedy.

    What bans, allows or pushes tokens acts on the logits of every row, before rows are combined and
    before implausible tokens are cut off, so that a cut never leaves only tokens that are banned.
    ``repetition_penalty`` acts on the combined scores, as in the strategies' own codes.

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
            They are of the combined scores: a token that is banned, or cut off as implausible, has
            -inf, the rest share the whole mass, and where one token is left its own is 0.
        allowed_token_ids: Ids of the only tokens that may be written; None allows all. Without an
            end token among them an answer ends at its length.
        bad_words: Words that are not written: their tokens, or the last token where the answer
            already ends with the others; at the beginning of a text and after a blank, as in vLLM.
        logit_bias: Added to logits, by token id; in [-100, 100].

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
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        self._set_types()
        self._check_token_choice()
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
            (
                "repetition_penalty",
                self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
                "finite and > 0",
            ),
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

    def _set_types(self) -> None:
        """Numbers as plain ints and floats, whatever library's they were; one stop as a tuple."""
        fields: dict[str, Any] = dict(vars(self))
        for name in (*WHOLE, *REAL):
            value, whole = fields[name], name in WHOLE
            if value is None and name in ("seed", "logprobs"):
                continue
            if not _is_number(value, Integral if whole else Real):
                wanted = "an integer" if whole else "a number"
                raise InvalidParameter(f"Sampling({name}={value!r}): {name} must be {wanted}.")
            object.__setattr__(self, name, (int if whole else float)(cast("Any", value)))
        stop: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Iterable):
            raise InvalidParameter(f"Sampling(stop={stop!r}): stop must be non-empty strings.")
        object.__setattr__(self, "stop", tuple(cast("Iterable[Any]", stop)))

    def _check_token_choice(self) -> None:
        """Fields that ban, allow or push tokens; ids are held against the vocabulary later."""
        if isinstance(self.bad_words, str):
            object.__setattr__(self, "bad_words", (self.bad_words,))
        bad: Any = self.bad_words
        allowed: Any = self.allowed_token_ids
        bias: Any = self.logit_bias
        for name, holds, bounds in (
            ("bad_words", _all(bad, lambda word: isinstance(word, str) and word.strip() != ""),
             "words, none of them empty"),
            ("allowed_token_ids", allowed is None or (_all(allowed, _is_id) and len(allowed) > 0),
             "None or one token id at least, each an integer >= 0"),
            ("logit_bias", bias is None or (isinstance(bias, Mapping) and _all(bias, _is_id)
             and all(map(_is_bias, cast("Mapping[Any, Any]", bias).values()))),
             f"numbers in [-{MOST_BIAS}, {MOST_BIAS}] by token id"),
        ):  # fmt: skip
            if not holds:
                given = reprlib.repr(getattr(self, name))  # thousands of ids are no sentence
                raise InvalidParameter(f"Sampling({name}={given}): {name} must be {bounds}.")
        object.__setattr__(self, "bad_words", tuple(bad))
        if allowed is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(dict.fromkeys(allowed)))


def _all(values: Any, holds: Callable[[Any], bool]) -> bool:
    some = isinstance(values, Iterable) and not isinstance(values, str)
    return some and all(map(holds, cast("Iterable[Any]", values)))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bias(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -MOST_BIAS <= value <= MOST_BIAS
