"""Rows laid end to end: the layouts are each other's inverse, and no layer can tell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import halludecode as hd
from halludecode.engines.hf import unpadded
from halludecode.engines.hf.unpadded import Unpadded
from tests.support import families

CPU = torch.device("cpu")


def real(lengths: list[int]) -> torch.Tensor:
    width = max(lengths)
    return torch.arange(width) >= width - torch.tensor(lengths)[:, None]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 4))
def test_layouts(lengths, before):
    mask = real(lengths)
    if mask.sum() > 7 / 8 * mask.numel():
        assert Unpadded.of(mask, CPU) is None
        return
    laid, (rows, width) = Unpadded.of(mask, CPU), mask.shape
    assert laid is not None
    block = torch.randn(rows, width, 3)
    joined = laid.joined(block)
    assert joined.shape == (1, sum(lengths), 3)
    assert torch.equal(
        joined[0], torch.cat([own[-n:] for own, n in zip(block, lengths, strict=True)])
    )
    assert torch.equal(laid.block(joined)[mask], block[mask])
    assert torch.equal(joined[0, laid.last], block[:, -1])
    heads = laid.heads(joined[:, None].expand(1, 2, -1, 3))
    assert heads.shape == (rows, 2, width, 3)
    assert torch.equal(heads[:, 1][mask], block[mask])
    past = torch.rand(rows, before) > 0.5
    seen = laid.visible(torch.cat([past, mask], 1))
    assert seen.shape == (rows, 1, width, before + width)
    for r in range(rows):
        for q in range(width - lengths[r], width):
            wanted = [*past[r].tolist(), *(width - lengths[r] <= k <= q for k in range(width))]
            assert seen[r, 0, q].tolist() == wanted


@pytest.mark.parametrize("spec", ["m3id(gate=1)", "vhr", "vista", "dola", "sid"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_tokens_and_scores_are_those_of_padded_rows(family_engine, monkeypatch, family, spec):
    engine = family_engine(family)
    monkeypatch.setattr(engine, "extra_rows", "always")
    words = ("Why?", "Is there a dog in the image, or something that looks like one?")
    asked = [hd.Request(w, [p]) for w, p in zip(words, families.pictures(), strict=False)]
    sampling, shapes = hd.Sampling(max_new_tokens=4, min_new_tokens=4), list[tuple[int, int]]()
    layer = engine.model.get_submodule(engine.family.layers)[0].mlp
    handle = layer.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    try:
        made, widths = list[list[hd.Output]](), list[tuple[int, int]]()
        for pays in (0.0, 1.0):
            monkeypatch.setattr(unpadded, "PAYS", pays)
            shapes.clear()
            made.append(engine.generate(asked, spec, sampling, score_words=("yes", "no")))
            widths.append(max(shapes, key=lambda shape: shape[0] * shape[1]))
    finally:
        handle.remove()
    padded, joined = made
    (rows, width), (one, tokens) = widths
    assert one == 1 and tokens < rows * width, "the layers see no padding"
    for a, b in zip(padded, joined, strict=True):
        assert a.token_ids == b.token_ids
        assert a.scores == pytest.approx(b.scores, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "reads"), [("gemma3", False), ("instructblip", False), ("llava", True)]
)
def test_families_with_masks_of_their_own_are_padded(family_engine, family, reads):
    assert family_engine(family).hf_model.reads_unpadded is reads
