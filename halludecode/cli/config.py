"""Options of ``eval`` from a YAML file; what is given on the command line wins."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidData
from halludecode.core.spec import split

# Option -> types a file may give it. A list where the command line repeats an option.
KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "tasks": (str, list, dict),
    "strategy": (str, list, dict),
    "data": (str, list),
    "images": (str,),
    "annotations": (str,),
    "image_ids": (str,),
    "synonyms": (str,),
    "prompt_preset": (str,),
    "family": (str,),
    "gt_family": (str,),
    "incomplete": (str,),
    "similarity": (str,),
    "columns": (dict, str, list),
    "engine": (str, dict),
    "server": (str, list),
    "api_key": (str,),
    "concurrency": (int,),
    "limit": (int,),
    "batch_size": (int,),
    "extra_rows": (str,),
    "seed": (int,),
    "seeds": (str, int, list),
    "temperature": (int, float),
    "max_new_tokens": (int,),
    "controls": (bool,),
    "answers": (str,),
    "shard": (str,),
    "engine_arg": (dict, str, list),
    "output": (str,),
    "fresh": (bool,),
    "dtype": (str,),
    "device": (str,),
    "device_map": (str,),
    "revision": (str,),
    "trust_remote_code": (bool,),
}
ALIASES = {"strategies": "strategy", "task": "tasks", "datasets": "data"}


def merge(flags: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """The options of a run.

    Args:
        flags: From the command line; None means not given.
        path: A YAML file with the same options, ``-`` or ``_`` in their names, or None.

    Returns:
        Every option, None where neither gives it; ``strategy`` and ``data`` are lists of str,
        ``tasks`` of str and one-key maps, ``columns`` is a mapping.

    Raises:
        InvalidData: The file cannot be read, or an option in it does not exist or does not fit.
    """
    merged = {**dict.fromkeys(KINDS), **(read(path) if path else {})}
    merged.update({name: value for name, value in flags.items() if value is not None})
    merged["tasks"] = _tasks(merged["tasks"])
    merged["data"] = _words(merged["data"])
    if merged["columns"] is not None:
        merged["columns"] = pairs(merged["columns"])
    merged["server"] = _listed(merged["server"])
    merged["seeds"] = _seeds(merged["seeds"])
    if merged["seeds"] and merged["seed"] is not None:
        raise InvalidData("Both seed and seeds are given; keep one.")
    if len(merged["seeds"]) == 1:
        merged["seed"], merged["seeds"] = merged["seeds"][0], []
    merged["strategy"] = [_spec(item) for item in _listed(merged["strategy"])]
    return merged


def read(path: Path) -> dict[str, Any]:
    """The options in a YAML file, by their Python names."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"--config {path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InvalidData(f"--config {path}{line}: not YAML ({problem}).") from error
    if not isinstance(content, dict):
        raise InvalidData(f"--config {path}: expected options, one `name: value` a line.")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        _take(settings, str(key), value, path)
    return settings


def _take(settings: dict[str, Any], key: str, value: Any, path: Path) -> None:
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InvalidData(
            f"--config {path}: unknown option {key!r}.{hint} Known: {', '.join(KINDS)}."
        )
    if name in settings:
        raise InvalidData(f"--config {path}: {key!r} gives {name!r} again; keep one.")
    if value is None:
        return
    if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and bool not in KINDS[name]):
        expected = " or ".join(kind.__name__ for kind in KINDS[name])
        raise InvalidData(f"--config {path}: {key} must be {expected}, not {value!r}.")
    if name == "engine" and isinstance(value, dict):
        for inner, inner_value in value.items():
            _take(settings, "engine" if inner == "name" else str(inner), inner_value, path)
    else:
        settings[name] = value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _words(value: Any) -> list[str]:
    """A list from ``a,b`` or ``["a", "b,c"]``."""
    words = [word.strip() for item in _listed(value) for word in str(item).split(",")]
    return [word for word in words if word]


def _tasks(value: Any) -> list[Any]:
    """A list from ``a,b(x=1)``, or of such texts and one-key maps."""
    tasks: list[Any] = []
    for item in _listed(value):
        texts = split(item, ",", item, "Tasks") if isinstance(item, str) else [item]
        tasks += [text.strip() if isinstance(text, str) else text for text in texts]
    return [task for task in tasks if task]


def pairs(value: Any) -> dict[str, str]:
    """A mapping as it is, or from ``["ours=theirs", ...]``."""
    if isinstance(value, dict):
        return {str(name): str(column) for name, column in value.items()}
    found = [str(item).partition("=") for item in _listed(value)]
    wrong = [name for name, sign, column in found if not (name and sign and column)]
    if wrong:
        raise InvalidData(f"--columns {wrong[0]!r}: give OURS=THEIRS, such as answer=reply.")
    return {name: column for name, _, column in found}


def _seeds(value: Any) -> list[int]:
    """Whole numbers from ``0..4``, ``0,1,7`` or a list of them."""
    found: list[int] = []
    for word in (part for item in _listed(value) for part in str(item).split(",")):
        first, dots, last = word.strip().partition("..")
        try:
            found += range(int(first), int(last) + 1) if dots else [int(first)]
        except ValueError:
            raise InvalidData(f"--seeds {word.strip()!r}: write 0..4 or 0,1,2.") from None
    return found


def _spec(item: Any) -> str:
    """A strategy as its string; YAML's one-key maps go through the parser."""
    if isinstance(item, str):
        return item
    from halludecode.core.spec import format as canonical
    from halludecode.core.spec import parse

    return canonical(parse(item))
