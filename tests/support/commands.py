"""Command lines that are shown to users, in README.md and in help texts."""

from __future__ import annotations

import re
import shlex


def shown(text: str) -> list[str]:
    """The lines that call us; one that ends in a backslash goes on in the next."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"^ *(halludecode .*)$", joined, flags=re.M)


def check(line: str, main, capsys) -> None:
    """The command exists and knows every option that the line has."""
    words = shlex.split(line)[1:]
    parts = words[:2] if words[0] == "testbed" else words[:1]
    assert main([*parts, "--help"]) == 0
    known = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in known, option
