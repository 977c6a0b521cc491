"""What the operator allows, and which strategy a request asks for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halludecode.core import spec as hd_spec
from halludecode.core.errors import HalluDecodeError, InvalidRequest, UnsupportedStrategy

XARGS = 'vllm_xargs: {"strategy": "vcd(alpha=0.5)"}'
READ = frozenset({"strategy", "details", "score_words", "explain"})  # of vllm_xargs
NOWHERE = "no-domain.invalid"  # vLLM reads an empty list of domains as "any domain"
LONGEST = 1000  # characters of a strategy
WORDS = frozenset({"request", "pin"})  # parameters of free text: words, the name of an artifact


class Busy(HalluDecodeError):
    """As many requests under strategies are running as the operator allows."""


@dataclass(frozen=True)
class Policy:
    """The operator's choices.

    Args:
        name: The model's public name.
        default: Strategy of requests that name none.
        aliases: Strategies listed in ``/v1/models`` as ``NAME:STRATEGY``.
        allowed: Strategies that may be asked for: a name with any parameters, a canonical text with
            those alone, see `allowed_of`; None allows all, greedy always is.
        rows: Most rows of one request: those of its strategy, times ``n``.
        groups: Most answers under strategies at a time.
        images: Most pictures of one request.
        image_bytes: Most bytes of one picture as it is sent.
        image_pixels: Most pixels of one picture.
        request_pixels: Most pixels of all pictures of one request.
        fetch_seconds: Most seconds that a remote picture may take.
        domains: Hosts that pictures may be fetched from.
        folder: Folder below which pictures may be read; None for none.
    """

    name: str
    default: str = "greedy"
    aliases: Sequence[str] = ()
    allowed: frozenset[str] | None = None
    rows: int = 32
    groups: int = 256
    images: int = 8
    image_bytes: int = 20 << 20
    image_pixels: int = 25_000_000
    request_pixels: int = 50_000_000
    fetch_seconds: float = 10.0
    domains: Sequence[str] = ()
    folder: str | None = None

    @property
    def body_bytes(self) -> int:
        """Most bytes of a request: its pictures in base64, and 4 MiB of words."""
        return self.images * self.image_bytes * 4 // 3 + (4 << 20)

    def strategy_of(self, model: str | None, xargs: Mapping[str, Any] | None) -> tuple[str, bool]:
        """The strategy a request asks for, and whether its model is an alias of ours.

        Raises:
            HalluDecodeError: It is unknown, malformed, not allowed, or named twice.
        """
        suffix = (model or "").removeprefix(f"{self.name}:")
        alias = suffix if model is not None and suffix != model else None
        requested = self._requested_strategy(xargs)
        named = [text for text in (requested, alias) if text is not None]
        for text in named:
            self.check_requested(text)
        if len({hd_spec.format(hd_spec.parse(text)) for text in named}) > 1:
            raise InvalidRequest(
                f"The model alias names strategy {alias!r} and vllm_xargs {requested!r}; name one."
            )
        text = named[0] if named else self.default
        if not named:
            self.check_allowed(text)
        return text, alias is not None

    def check_requested(self, text: str) -> None:
        """The one gate of every strategy that a request names, at whatever route.

        Raises:
            HalluDecodeError: It is unknown, malformed, too long, not allowed, or names a file.
        """
        if len(text) > LONGEST:
            raise InvalidRequest(
                f"The strategy has {len(text)} characters; at most {LONGEST} are read."
            )
        self.check_allowed(text)
        if text not in (self.default, *self.aliases):
            _check_paths(text)

    def check_allowed(self, text: str) -> None:
        """Refuse a strategy the operator did not allow.

        Raises:
            HalluDecodeError: It is that, or unknown or malformed.
        """
        parts = hd_spec.parse(text)
        if self.allowed is None:
            return
        allowed = self.allowed | {"greedy"}
        fixed = {text.partition("(")[0] for text in allowed if "(" in text}
        for part in parts:
            canonical = hd_spec.format((part,))
            if not {part.name, canonical} & allowed:
                named = canonical if part.name in fixed else part.name
                raise UnsupportedStrategy(
                    f"Strategy {named!r} is not allowed on this server; allowed: "
                    f"{', '.join(sorted(allowed))}."
                )

    def check_rows(self, canonical: str, rows: int, n: int) -> None:
        """Refuse more rows than a request may have.

        Raises:
            InvalidRequest: The sentence names the numbers.
        """
        if rows * n > self.rows:
            raise InvalidRequest(
                f"{canonical} with n={n} takes {rows * n} rows ({rows} each), this server allows "
                f"{self.rows} per request; lower n or compose fewer strategies."
            )

    def _requested_strategy(self, xargs: Mapping[str, Any] | None) -> str | None:
        if not xargs:
            return None
        others = sorted(xargs.keys() - READ)
        close = others and difflib.get_close_matches(others[0], READ, n=1, cutoff=0.7)
        if close:
            raise InvalidRequest(
                f"vllm_xargs has {others[0]!r}, which nobody reads. Did you mean {close[0]!r}?"
            )
        if others and not READ.isdisjoint(xargs):
            raise InvalidRequest(
                f"vllm_xargs has {others[0]!r} beside the strategy; parameters belong inside its "
                f"text, as in {XARGS}."
            )
        text = xargs.get("strategy")
        if text is None:
            return None
        if not isinstance(text, str):
            raise InvalidRequest(f"The strategy {text!r} must be text, as in {XARGS}.")
        return text


def allowed_of(texts: Sequence[str]) -> frozenset[str] | None:
    """What an operator allows, as `Policy` has it.

    Args:
        texts: Specs; in each a bare name leaves its parameters free, and ``name(...)`` or
            ``name@preset`` fixes them all. Composing is free.

    Returns:
        Names and canonical texts; None where nothing is said.

    Raises:
        HalluDecodeError: One is unknown or malformed.
    """
    allowed: set[str] = set()
    for text in texts:
        for item in hd_spec.split(text, "+", text):
            (part,) = hd_spec.parse(item)
            fixed = item.strip() != part.name
            allowed.add(hd_spec.format((part,)) if fixed else part.name)
    return frozenset(allowed) or None


def _check_paths(text: str) -> None:
    """Refuse a request that names a file or a model of its own; the operator's aliases may.

    What is free text in a parameter could be either, so only what is known to be words may be said.
    """
    for part in hd_spec.parse(text):
        for param in part.params():
            free = "str" in param.type and param.choices is None and param.name not in WORDS
            if free and getattr(part, param.name) != param.default:
                raise InvalidRequest(
                    f"{part.name}({param.name}=...): a request may not name files of the server or "
                    "models; ask the operator for an alias with it."
                )
