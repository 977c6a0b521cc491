"""Spec strings: ``"var+vcd(alpha=0.5)"`` <-> tuple of strategies <-> YAML.

Benchmarks are written in the same items, joined by commas: ``"pope,chair(family=pattern)"``.

    spec   := item ("+" item)*
    item   := name ["@" preset] ["(" [key "=" value ("," key "=" value)*] ")"]
    value  := a Python literal, or a bare word that stands for itself

Values go through `ast.literal_eval`, nothing else; `+` and `,` inside quotes or brackets are text.
Precedence: class default < named preset < explicit value. Presets are never applied silently.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from halludecode.core.errors import InvalidParameter
from halludecode.core.registry import STRATEGIES
from halludecode.core.strategy import Strategy

# Blanks are taken once and for all (``*+``): else a thousand of them are shared out for seconds.
_ITEM = re.compile(
    r"\s*+([A-Za-z_][A-Za-z0-9_]*+)\s*+(?:@\s*+([A-Za-z0-9_.\-]++)\s*+)?(?:\((.*)\)\s*+)?", re.S
)
_BARE = re.compile(r"[A-Za-z0-9_./:\-]+")
_OPEN, _CLOSE = "([{", ")]}"

Spec = str | Strategy | Sequence[Any] | Mapping[str, Any]


def parse(spec: Spec) -> tuple[Strategy, ...]:
    """Strategies of a spec string, an instance, or the YAML form (names and one-key maps).

    Raises:
        UnknownStrategy: A name is not registered; near misses are named.
        InvalidParameter: The text does not follow the grammar, or a value does not fit.
    """
    if isinstance(spec, Strategy):
        return (spec,)
    if isinstance(spec, str):
        return tuple(_item(text, spec) for text in split(spec, "+", spec))
    if isinstance(spec, Mapping):
        return tuple(_from_map(name, values) for name, values in spec.items())
    given: Any = spec  # whatever a YAML file or a caller handed over
    if isinstance(given, Sequence):
        return tuple(part for entry in cast("Sequence[Any]", given) for part in parse(entry))
    raise InvalidParameter(
        f"Strategy {spec!r}: give text such as 'vcd(alpha=0.5)', or a list of names and maps."
    )


def _from_map(name: str, values: Any) -> Strategy:
    if values is not None and not isinstance(values, Mapping):
        raise InvalidParameter(f"Strategy {name}: parameters must be a map, not {values!r}.")
    given = cast("dict[Any, Any]", values or {})  # YAML's names need not be text
    return get(str(name), **{str(key): value for key, value in given.items()})


def get(name: str, /, **values: Any) -> Strategy:
    """One strategy by ``name`` or ``name@preset`` with explicit parameter values."""
    name, _, preset = name.partition("@")
    cls = STRATEGIES.get(name)
    check_names(name, values, [spec.name for spec in cls.params()])
    return cls(**{**(load_preset(name, preset) if preset else {}), **values})


def check_names(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuses parameters that ``owner`` does not have, with near misses."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=2)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            takes = f"It takes {', '.join(known)}." if known else "It takes no parameters."
            raise InvalidParameter(
                f"{owner}({key}=...): {owner} has no parameter {key!r}.{hint} {takes}"
            )


def format(parts: Sequence[Strategy]) -> str:
    """The canonical string: every parameter, in declared order."""
    return "+".join(format_item(part.name, part.resolved()) for part in parts)


def to_config(parts: Sequence[Strategy]) -> list[dict[str, dict[str, Any]]]:
    """The YAML and JSON form: a list of one-key maps."""
    return [{p.name: {k: _plain(v) for k, v in p.resolved().items()}} for p in parts]


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Presets of a strategy by name: parameter -> ``{value, source}``."""
    import yaml

    here = Path(__file__).parent.parent
    for folder in (here / "configs" / "strategies", here.parent / "configs" / "strategies"):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {}


def load_preset(name: str, preset: str) -> dict[str, Any]:
    """Parameter values of one preset; InvalidParameter names the available ones."""
    available = presets(name)
    if preset not in available:
        listed = (
            f"Known: {', '.join(sorted(available))}." if available else f"{name} has no presets."
        )
        raise InvalidParameter(f"{name}@{preset}: no such preset. {listed}")
    return {key: entry["value"] for key, entry in available[preset].items() if key != "note"}


def split(text: str, separator: str, whole: str, kind: str = "Strategy") -> list[str]:
    """Split at a separator outside quotes and brackets."""
    pieces: list[str] = []
    depth, quote, start, escaped = 0, "", 0, False
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif char == separator and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
        if depth < 0:
            break
    if depth or quote:
        raise InvalidParameter(f"{kind} {whole!r}: brackets or quotes do not match.")
    return [*pieces, text[start:]]


def _item(text: str, whole: str) -> Strategy:
    name, values = read_item(text, whole)
    return get(name, **values)


def read_item(text: str, whole: str, kind: str = "Strategy") -> tuple[str, dict[str, Any]]:
    """Name (with ``@preset``) and values of one item of the grammar.

    Args:
        text: The item.
        whole: What it stands in, for messages.
        kind: What is named, for messages.

    Raises:
        InvalidParameter: The text does not follow the grammar.
    """
    match = _ITEM.fullmatch(text)
    if match is None:
        joined = "name@preset(...), joined by '+'" if kind == "Strategy" else "several by commas"
        raise InvalidParameter(
            f"{kind} {whole!r}: cannot read {text.strip()!r}; "
            f"write name, name(key=value,...) or {joined}."
        )
    name, preset, arguments = match.groups()
    values: dict[str, Any] = {}
    given = arguments and arguments.strip()
    for argument in split(arguments, ",", whole, kind) if given else []:
        key, equals, value = argument.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier() or not value.strip():
            raise InvalidParameter(f"{kind} {whole!r}: {argument.strip()!r} is not key=value.")
        if key in values:
            raise InvalidParameter(f"{kind} {whole!r}: {key} is given twice.")
        values[key] = _value(value.strip(), whole, kind)
    return (f"{name}@{preset}" if preset else name), values


def _value(text: str, whole: str, kind: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        if _BARE.fullmatch(text):
            return text
    raise InvalidParameter(
        f"{kind} {whole!r}: cannot read the value {text!r}; quote it if it is text."
    )


def format_item(name: str, values: Mapping[str, Any]) -> str:
    """``name(key=value,...)``, which `read_item` reads back."""
    given = ",".join(f"{key}={_format_value(value)}" for key, value in values.items())
    return f"{name}({given})" if given else name


def _plain(value: Any) -> Any:
    """The value as YAML and JSON write it: a list for a tuple."""
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _format_value(value: Any) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            return value
    text = repr(value)
    return text.replace(" ", "") if isinstance(value, tuple) else text
