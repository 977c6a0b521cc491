"""Combining is a few sums over the vocabulary: no masked copies, and hardly any memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from halludecode.core import step as hd_step
from halludecode.core.spec import get
from halludecode.core.step import Step

V = 1000
MASKS = {"where", "masked_fill", "eq", "ne", "lt"}  # slow on a processor
ROWS = {
    "vcd": ("noised", 2), "ritual": ("transformed", 2), "damro": ("outliers", 2),
    "agla": ("masked", 2), "m3id": ("blind", 2), "pai": ("blind", 3), "lacing": ("soft", 1),
}  # fmt: skip


class Made(TorchDispatchMode):
    """Names of the operations that make or overwrite a tensor of the vocabulary's size."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= V:
            self.names.append(func.__name__.split(".")[0])
        return out


def combined(name: str, main: torch.Tensor) -> list[str]:
    rows = {"main": main, ROWS[name][0]: torch.randn(2, V)}
    step = Step(rows, torch.ones(2, 1, dtype=torch.int64))
    with Made() as made:
        hd_step.combine([(get(name), step)], main).check()
    return made.names


@pytest.mark.parametrize("name", ROWS)
def test_no_masked_copies_where_nothing_is_banned(name):
    names = combined(name, torch.randn(2, V))
    assert not MASKS & set(names)
    fresh = [name for name in names if not name.endswith("_")]
    assert len(fresh) <= ROWS[name][1], names


def test_masks_are_still_made_where_something_is_banned():
    main = torch.randn(2, V).index_fill(-1, torch.tensor([3]), -torch.inf)
    assert MASKS & set(combined("vcd", main))
