"""VAF: the published vector, the official forward, and whole runs written out slowly."""

from __future__ import annotations

import pytest
import torch

from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.core.test_attention import CASES, attention, close, common_block, weights_after
from tests.support import official
from tests.support.edited_runs import check_run


def test_vector():
    case, block = CASES["vaf"], common_block()
    get("vaf").attend(attention(block))
    close(weights_after(block), case["weights"])
    close(block.output()[0], case["outputs"])


def test_the_official_forward():
    official.close(official.edited("vaf"), "vaf", [5, 6, 7])  # text and generated


def test_a_negative_score_gets_less_attention():
    block = common_block()
    before = block.scores().clone()
    get("vaf", beta=0.0).attend(attention(block))
    moved = (block.scores() - before)[0, :, -1, 1:4]
    assert torch.equal(moved.sign(), before[0, :, -1, 1:4].sign())
    assert (moved < 0).any() and (moved > 0).any()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family):
    engine = family_engine(family)
    layers = set(get("vaf", start=0, stop=20).layers(engine.model_info))

    def scores(layer, given, at):
        if layer in layers:
            for head in given:
                for row in at.after_image(len(head)):
                    for j in at.image:
                        head[row][j] *= 2.5
                    for j in at.system:
                        head[row][j] *= 0.25
        return given

    check_run(engine, family, "vaf(alpha=1.5,beta=0.75,start=0,stop=20)", scores=scores)


def test_layers_scale_and_off_is_off():
    m = typical_model_info()
    assert compile_plan("vaf", m).parts[0].layers == frozenset(range(9, 15))
    assert compile_plan("vaf(alpha=0,beta=0)", m).parts == ()
    assert compile_plan("vaf", m).reusable, "the picture's own rows are left alone"
