"""What harnesses hand over as words: a model's engine, and a strategy, maybe cut at commas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidParameter

if TYPE_CHECKING:
    from halludecode.engines.api import Engine

QUOTES = ("'", '"')


def unquoted(text: Any) -> str:
    """A value without the quotes that kept a harness from cutting it."""
    word = str(text).strip()
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in QUOTES
    return word[1:-1] if quoted else word


def whole_strategy(text: Any, others: Mapping[str, Any], option: str) -> str:
    """A strategy, which must not have been cut at a comma.

    Args:
        text: As the harness gave it.
        others: What it took for further arguments, in their order.
        option: Where to write it, with ``{}`` in place of the strategy.

    Raises:
        InvalidParameter: It was cut, or is none; the sentence shows the spelling that survives.
    """
    from halludecode.core import spec as hd_spec

    strategy = unquoted(text)
    if strategy.count("(") > strategy.count(")"):
        pieces = [strategy]
        for name, value in others.items():
            pieces.append(f"{name}={value}")
            if str(value).endswith(")"):
                break
        raise InvalidParameter(
            f"The strategy was cut at a comma: {strategy!r}; quote it inside the argument, "
            f"{option.format(','.join(pieces))}."
        )
    hd_spec.parse(strategy)  # before anything slow
    return strategy


def open_engine(model: Any, engine: str | None, options: Mapping[str, Any]) -> Engine:
    """The engine that answers.

    Args:
        model: Hub id, folder, "testbed", or the URL of a running `halludecode serve`.
        engine: "hf", "vllm" or "server"; None takes "server" for a URL and else "hf".
        options: What `halludecode.load` takes beside.

    Raises:
        HalluDecodeError: As `halludecode.load`.
    """
    from halludecode.api import load

    name = unquoted(model)
    server = name.startswith(("http://", "https://"))
    return load(name, engine or ("server" if server else "hf"), **options)
