"""What a model family can do: `halludecode doctor --family NAME_OR_FOLDER`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from halludecode.catalog import strategies
from halludecode.core.errors import HalluDecodeError, InvalidModel
from halludecode.models.families import FAMILIES
from halludecode.models.family import ModelFamily

ALWAYS = ("placeholder", "layers", "turn", "span", "view", "lacks")  # of every row


def report(given: str) -> dict[str, Any]:
    """What engines and strategies there are for a family.

    Args:
        given: A model type ("qwen3_vl"), or a checkpoint's folder or hub id, whose config is read.

    Returns:
        ``family``, ``switches`` (what its row sets beyond the usual), ``engines`` (name -> why not,
        "" where it is served), ``refused`` (strategy -> why).

    Raises:
        InvalidModel: No such family; what is known is named.
    """
    from halludecode.models.checkpoints import check_type, load_config

    name = given
    if given not in FAMILIES:
        if not Path(given).exists() and "/" not in given:
            raise InvalidModel(
                f"No model family is called {given!r}; known: {', '.join(FAMILIES)}. Adding one is "
                "a row of halludecode/models/families.py; CONTRIBUTING.md says how."
            )
        check_type(given, given)
        name = load_config(given, given).model_type
    family = FAMILIES[name]
    refused = {
        info.name: family.lacks[need]
        for info in strategies()
        for need in sorted(info.needs)
        if need in family.lacks
    }
    return {
        "family": name,
        "placeholder": family.placeholder,
        "layers": family.layers,
        "switches": switches(family),
        "engines": {"hf": "", "vllm": _why_not_vllm(name)},
        "strategies": len(strategies()) - len(refused),
        "refused": refused,
    }


def switches(family: ModelFamily) -> dict[str, Any]:
    """What a row sets beyond what every row says."""
    found: dict[str, Any] = {}
    for field in fields(family):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(family, field.name)
        if field.name not in ALWAYS and value != default:
            found[field.name] = value.__name__ if callable(value) else value
    return found


def describe(found: dict[str, Any]) -> list[Any]:
    """The report as lines for a terminal."""
    lines = [
        f"{found['family']}: a picture is {found['placeholder']!r}, layers at {found['layers']}"
    ]
    lines += [f"  {name} = {value}" for name, value in found["switches"].items()]
    for engine, why in found["engines"].items():
        lines.append(f"  engine {engine}: {why or 'serves it'}")
    lines.append(f"  {found['strategies']} strategies; refused, before any token:")
    lines += [f"    {name}: {why}" for name, why in found["refused"].items()] or ["    none"]
    return lines


def _why_not_vllm(name: str) -> str:
    try:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
        )

        from halludecode.engines.vllm.frontend.loading import check_served, import_vllm

        import_vllm()
        check_served(name, [CLASSES[name]])
    except HalluDecodeError as error:
        return str(error)
    return ""
