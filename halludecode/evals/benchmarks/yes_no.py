"""The published ways of reading an answer as yes or no.

They disagree in exactly such answers as "No!", "NO" or "There is a snowboard", so they are kept
apart by name, and nothing is stripped from an answer unless its rule does so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from halludecode.core.errors import InvalidData


def _official(answer: str, label: str) -> str:
    tokens = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(tokens) else "yes"


def _opera(answer: str, label: str) -> str:
    tokens = answer.replace(".", "").replace(",", "").split(" ")
    denied = any(t in ("No", "not", "no", "NO") or t.endswith("n't") for t in tokens)
    return "no" if denied else "yes"


def _vcd(answer: str, label: str) -> str:
    # Only the word that would be right is looked for, anywhere, even inside "snowboard".
    right = label in answer.lower()
    return label if right else ("no" if label == "yes" else "yes")


def _lmms_eval(answer: str, label: str) -> str:
    text = answer.lower().strip()
    return text if text in ("yes", "no") else "other"


def _vlmevalkit(answer: str, label: str) -> str:
    words = _strip_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return "other"
    return "yes" if "yes" in words else "no"


def _repope(answer: str, label: str) -> str:
    text = answer.lower()
    if "yes" in text:
        return "yes"
    return "no" if "no" in text else "other"  # "no" covers "not"


def _strip_punctuation(text: str) -> str:
    comma_in_number = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = mark + " " in text or " " + mark in text
        stripped = stripped.replace(mark, "" if beside_space or comma_in_number else " ")
    # The kit passes a flag where re.sub takes a count, so at most 32 periods go.
    return re.sub(r"\.(?!\d)", "", stripped, count=32)


RULES: Mapping[str, Callable[[str, str], str]] = MappingProxyType(
    {
        "official": _official,
        "opera": _opera,
        "vcd": _vcd,
        "lmms_eval": _lmms_eval,
        "vlmevalkit": _vlmevalkit,
        "repope": _repope,
    }
)


def parse_answer(answer: str, rule: str = "official", label: str | None = None) -> str:
    """Reads an answer as ``yes``, ``no`` or ``other`` (only some rules know the last).

    Args:
        answer: The model's raw words; nothing is stripped unless the rule does so.
        rule: A key of `RULES`.
        label: The right answer; the ``vcd`` rule depends on it, the others ignore it.

    Raises:
        InvalidData: The rule is unknown, or ``vcd`` is used without a label.
    """
    if rule not in RULES:
        raise InvalidData(f"parser {rule!r} is unknown; the known ones are {', '.join(RULES)}.")
    if rule == "vcd" and label not in ("yes", "no"):
        raise InvalidData("parser 'vcd' reads an answer in the light of its label; give one.")
    return RULES[rule](answer, label or "")


def is_unparsed(answer: str) -> bool:
    """Whether an answer holds neither the word yes nor the word no, in any case."""
    return re.search(r"\b(yes|no)\b", answer, re.IGNORECASE) is None


# MME ---------------------------------------------------------------------------------------------


def _mme_official(answer: str) -> str:
    text = answer.lower()
    if text in ("yes", "no"):
        return text
    if "yes" in text[:4]:
        return "yes"
    return "no" if "no" in text[:4] else "other"


def _mme_lmms_eval(answer: str) -> str:
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _mme_official(text)


MME_RULES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "official": _mme_official,
        "lmms_eval": _mme_lmms_eval,
        "vlmevalkit": lambda answer: _vlmevalkit(answer, ""),
    }
)


def parse_mme_answer(answer: str, rule: str = "official") -> str:
    """Reads an MME answer as ``yes``, ``no`` or ``other``.

    Args:
        answer: The model's raw words, without the line end of the results file.
        rule: A key of `MME_RULES`.

    Raises:
        InvalidData: The rule is unknown.
    """
    if rule not in MME_RULES:
        raise InvalidData(
            f"parser {rule!r} is unknown for MME; the known ones are {', '.join(MME_RULES)}."
        )
    return MME_RULES[rule](answer)
