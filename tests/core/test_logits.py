"""Properties of the float32 arithmetic on logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halludecode.core import logits as hd_math

patient = settings(deadline=None)  # a busy machine is no error
values = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


def rows(*lists):
    width = min(map(len, lists))
    return [torch.tensor([x[:width]]) for x in lists]


@patient
@given(values, st.floats(0, 1))
def test_plausible_keeps_exactly_the_probable(scores, beta):
    (z,) = rows(scores)
    kept = hd_math.plausible(z, like=z, beta=beta) > -math.inf
    p = z.double().softmax(-1)
    edge = ((p - beta * p.max()).abs() < 1e-6 * p.max())[0]
    assert all(k == (q >= beta * p.max()) or e for k, q, e in zip(kept[0], p[0], edge, strict=True))
    assert kept[0, z.argmax()]


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_plausible_adds_the_same_mask_that_filling_puts(beta):
    main = torch.randint(-3, 4, (5, 101)) / 4  # many ties on the cut-off
    main[0, ::3], main[1] = -math.inf, -math.inf
    scores = torch.randn(5, 101).masked_fill(main == -math.inf, -math.inf)
    kept, before = scores.clone(), main.clone()
    cut = main.amax(-1, keepdim=True) + math.log(beta)
    made = hd_math.plausible(scores, like=main, beta=beta)
    assert torch.equal(made, scores.masked_fill(main < cut, -math.inf))
    assert torch.equal(scores, kept) and torch.equal(main, before), "nothing is written on"


@pytest.mark.parametrize("width", [1, 15, 16, 17, 33])
def test_contrast_is_the_same_number_wherever_a_token_stands(width):
    x, y = torch.randn(3, width), torch.randn(3, width)
    before = (x.clone(), y.clone())
    whole = hd_math.contrast(x, y, 0.7)
    alone = [hd_math.contrast(x[i : i + 1], y[i : i + 1], 0.7) for i in range(3)]
    assert torch.equal(whole, torch.cat(alone))
    torch.testing.assert_close(whole, 1.7 * x - 0.7 * y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]), "nothing is written on"


@patient
@given(values, values, st.floats(0, 3), st.floats(-5, 5))
def test_contrast_ignores_constants_and_equals_main_for_equal_rows(a, b, alpha, shift):
    x, y = rows(a, b)
    there = hd_math.contrast(x, y, alpha).softmax(-1)
    torch.testing.assert_close(
        hd_math.contrast(x + shift, y, alpha).softmax(-1), there, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(hd_math.contrast(x, x, alpha), x, atol=1e-4, rtol=1e-4)
    assert hd_math.contrast(x, y, 0) is x


@patient
@given(values, values, values)
def test_compose_is_order_free_and_never_nan(a, b, c):
    main, one, two = rows(a, b, c)
    one = hd_math.plausible(one, like=main, beta=0.3)
    there, back = hd_math.compose(main, [one, two]), hd_math.compose(main, [two, one])
    assert not there.isnan().any()
    torch.testing.assert_close(there, back, atol=1e-4, rtol=1e-4)
    assert torch.equal(there == -math.inf, one == -math.inf)


@patient
@given(values, values)
def test_divergences(a, b):
    x, y = rows(a, b)
    p, q = x.double().softmax(-1), y.double().softmax(-1)
    expected = float((p * (p.log() - q.log())).sum())
    assert float(hd_math.kl(x.double(), y.double())) == pytest.approx(expected, abs=1e-9)
    js = float(hd_math.js(x.double(), y.double()))
    assert -1e-9 <= js <= math.log(2) + 1e-9
    assert js == pytest.approx(float(hd_math.js(y.double(), x.double())), abs=1e-9)
    assert float(hd_math.entropy(x.double())) == pytest.approx(
        float(-(p * p.log()).sum()), abs=1e-9
    )


def test_entropy_of_a_banned_token_is_finite():
    assert float(hd_math.entropy(torch.tensor([0.0, -math.inf]))) == 0
    assert float(hd_math.kl(torch.tensor([0.0, -math.inf]), torch.zeros(2))) == pytest.approx(
        math.log(2)
    )


def test_unban_puts_main_where_only_the_other_row_is_banned():
    other, main = torch.tensor([[-math.inf, 1.0, -math.inf]]), torch.tensor([[2.0, 3.0, -math.inf]])
    assert hd_math.unban(other, main).tolist() == [[2.0, 1.0, -math.inf]]
    clean = torch.tensor([[0.0, 1.0, 2.0]])
    assert hd_math.unban(clean, main) is clean
    assert [hd_math.unbanned(x) for x in (clean, main, clean * math.nan)] == [True, False, False]


def test_half_precision_inputs_agree_after_float32_combine():
    x, y = torch.randn(4, 99, dtype=torch.float64), torch.randn(4, 99, dtype=torch.float64)
    exact = hd_math.contrast(x, y, 1.0)
    half = hd_math.contrast(x.half().float(), y.half().float(), 1.0)
    torch.testing.assert_close(half.double(), exact, atol=1e-2, rtol=0)
