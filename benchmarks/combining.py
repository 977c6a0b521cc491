"""What it costs to combine the rows of one step, beside the model's own step.

Run as part of `overhead.py`. Logits are random, nothing of them is banned, as in all but the first
tokens of an answer with a minimum length.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from halludecode.core.step import Step, combine

VOCABULARIES = (32064, 151936)  # LLaVA-1.5's and Qwen2.5-VL's
ROWS = {"vcd": "noised", "m3id": "blind", "pai": "blind"}  # what is timed, and its second row


@torch.no_grad()
def measure(engine: Any, lines: Sequence[dict], clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Milliseconds of one step's combining at real vocabularies, beside the model's own step.

    Args:
        engine: The model.
        lines: What was measured of strategies: name, streams and token_ms, by the same clock.
        clock: Seconds.
    """
    made = []
    own = engine.model_info.vocab_size
    for line in (line for line in lines if line["name"] in ROWS):
        strategy, row = engine.plan(line["name"]).parts[0].strategy, ROWS[line["name"]]
        entry: dict[str, Any] = {"name": line["name"], "streams": line["streams"], "ms": {}}
        for size in VOCABULARIES:
            logits = torch.randn(2, line["streams"], size, device=engine.hf_model.device)
            entry["ms"][size] = _median_ms(strategy, {"main": logits[0], row: logits[1]}, clock)
        near = min(VOCABULARIES, key=lambda size: abs(size - own))
        entry["share"] = (
            entry["ms"][near] / line["token_ms"] if own > min(VOCABULARIES) / 2 else None
        )
        made.append(entry)
    return made


def _median_ms(strategy: Any, rows: dict[str, torch.Tensor], clock: Callable[[], float]) -> float:
    main, spent = rows["main"], []
    t = torch.ones(len(main), 1, dtype=torch.int64, device=main.device)
    for _ in range(12):
        start = clock()
        combine([(strategy, Step(rows, t))], main)
        if main.is_cuda:
            torch.cuda.synchronize()
        spent.append(clock() - start)
    return statistics.median(spent[2:]) * 1000


def table(entries: list[dict]) -> str:
    """Markdown."""
    heads = [f"{size} words" for size in VOCABULARIES]
    rows = ["| strategy | streams | " + " | ".join((*heads, "of the model's step")) + " |"]
    rows.append("|---" * (len(heads) + 3) + "|")
    for entry in entries:
        cells = [f"{entry['ms'][size]:.2f} ms" for size in VOCABULARIES]
        cells.append("" if entry["share"] is None else f"{entry['share']:.1%}")
        rows.append(f"| {entry['name']} | {entry['streams']} | {' | '.join(cells)} |")
    return "\n".join(rows)
