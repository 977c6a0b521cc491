"""All answers of a run folder, as scores, comparisons and reports take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halludecode.evals.data.run_files import read_lines
from halludecode.evals.results.build import Answers, arrange


def run_answers(folder: Path, run: Mapping[str, Any]) -> dict[tuple[str, str], Answers]:
    """The answers of a run by (task, data); empty where nothing was answered yet.

    Args:
        folder: The run folder.
        run: The content of its ``run.json``.
    """
    return arrange(read_lines(folder / "samples.jsonl"), run)
