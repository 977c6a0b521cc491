"""Which tokens a request bans, allows or pushes, on every row's logits and on every engine.

Bad words are found as vLLM finds them: by the tokens of a word at the beginning of a text and after
a blank, the last of which is banned where an answer ends with the others. What stood in the prompt
does not count (in transformers' ``bad_words_ids`` it does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halludecode.core.errors import InvalidRequest
from halludecode.engines.api import Sampling

NEG_INF = float("-inf")


@dataclass(frozen=True)
class TokenRules:
    """Rules of one request; nothing is set where it has none.

    Args:
        allowed: The only tokens that may be written; None allows all.
        bad: Sequences of which none may be completed.
        bias: Added to logits, by token.
    """

    allowed: tuple[int, ...] | None = None
    bad: tuple[tuple[int, ...], ...] = ()
    bias: tuple[tuple[int, float], ...] = ()

    def __bool__(self) -> bool:
        return self != TokenRules()

    @property
    def looks_back(self) -> bool:
        """Whether a ban depends on what was written."""
        return any(len(ids) > 1 for ids in self.bad)

    def banned(self, written: Sequence[int]) -> list[int]:
        """Tokens that would complete a bad word after these tokens of the answer."""
        return [
            ids[-1]
            for ids in self.bad
            if len(ids) == 1 or tuple(written[-(len(ids) - 1) :]) == ids[:-1]
        ]

    def added(self, size: int, written: Sequence[int]) -> Tensor:
        """float32 [size] to add to a row's logits: 0, a bias, or -inf for what is banned."""
        row = torch.full((size,), 0.0 if self.allowed is None else NEG_INF)
        if self.allowed is not None:
            row[list(self.allowed)] = 0.0
        for token, bias in self.bias:
            row[token] += bias
        row[self.banned(written)] = NEG_INF
        return row

    def plain(self) -> dict[str, Any]:
        """As values that cross processes, see `of_plain`."""
        allowed = None if self.allowed is None else list(self.allowed)
        return {
            "allowed": allowed,
            "bad": [list(ids) for ids in self.bad],
            "bias": [list(pair) for pair in self.bias],
        }

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> TokenRules:
        """What `plain` was made of."""
        allowed = values["allowed"]
        return cls(
            None if allowed is None else tuple(allowed),
            tuple(tuple(ids) for ids in values["bad"]),
            tuple((int(token), float(bias)) for token, bias in values["bias"]),
        )


def rules_of(sampling: Sampling, tokenizer: Any, size: int, eos: Sequence[int]) -> TokenRules:
    """A request's rules.

    Args:
        sampling: What it asks for.
        tokenizer: Of the model.
        size: Of the model's vocabulary.
        eos: End-of-sequence ids, which ``min_new_tokens`` bans at first.

    Raises:
        InvalidRequest: An id is not in the vocabulary, a word has no token, or nothing is left.
    """
    allowed, bias = sampling.allowed_token_ids, dict(sampling.logit_bias or {})
    for name, ids in (("allowed_token_ids", allowed or ()), ("logit_bias", bias)):
        outside = [token for token in ids if token >= size]
        if outside:
            raise InvalidRequest(
                f"{name}: {outside[0]} is no token of this model, whose ids are 0 to {size - 1}."
            )
    bad = [ids for word in sampling.bad_words for ids in _spellings(word, tokenizer)]
    sorted_bias = tuple(sorted((token, float(value)) for token, value in bias.items()))
    rules = TokenRules(None if allowed is None else tuple(allowed), tuple(bad), sorted_bias)
    never = {ids[0] for ids in bad if len(ids) == 1}
    left = (set(range(size)) if allowed is None else set(allowed)) - never
    if rules and not left:
        raise InvalidRequest(
            "Every token is banned: allowed_token_ids and bad_words leave none that could be "
            "written; allow more or ban less."
        )
    if rules and sampling.min_new_tokens and not left - set(eos):
        raise InvalidRequest(
            f"min_new_tokens={sampling.min_new_tokens} bans the end token at first, and no other "
            "is allowed; allow more tokens or leave the minimum out."
        )
    return rules


def exhausted(written: int) -> InvalidRequest:
    """The error of an answer that no token may continue."""
    return InvalidRequest(
        f"After {written} token(s) of the answer every token is banned by allowed_token_ids, "
        "bad_words or the structure asked for; allow more or ban less."
    )


def _spellings(word: str, tokenizer: Any) -> list[tuple[int, ...]]:
    """The tokens of a word at the beginning of a text, and after a blank where that is another."""
    plain, spaced = (
        tuple(tokenizer.encode(start + word.lstrip(), add_special_tokens=False))
        for start in ("", " ")
    )
    if not plain:
        raise InvalidRequest(f"bad_words: {word!r} has no token of this model; leave it out.")
    other = spaced and spaced[0] != plain[0] and len(spaced) == len(plain)
    return [plain, spaced] if other else [plain]
