"""Every published combination rule as golden values: contrastive.json through the strategies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from halludecode.core import step as hd_step
from halludecode.core.spec import get
from halludecode.core.step import Step
from halludecode.engines.api import Sampling
from halludecode.engines.sampling import Sampler

CASES = {
    v["id"]: v
    for v in json.loads((Path(__file__).parents[1] / "data" / "contrastive.json").read_text())[
        "vectors"
    ]
}
INF = float("inf")


def tensor(values) -> torch.Tensor:
    rows = values if isinstance(values[0], list) else [values]
    return torch.tensor([[-INF if x == "-inf" else float(x) for x in row] for row in rows])


def combined(parts, main: torch.Tensor, t: int = 1, *, masking: bool = True) -> torch.Tensor:
    steps = [
        (s, Step({"main": main, **rows}, torch.full((len(main), 1), t), masking=masking))
        for s, rows in parts
    ]
    return hd_step.combine(steps, main).check()


def check(scores: torch.Tensor, expected: dict) -> None:
    torch.testing.assert_close(scores, tensor(expected["scores"]), atol=1e-4, rtol=0)
    if "probs" in expected:
        torch.testing.assert_close(scores.softmax(-1), tensor(expected["probs"]), atol=1e-4, rtol=0)
    if "argmax" in expected:
        wanted = expected["argmax"]
        assert scores.argmax(-1).tolist() == (wanted if isinstance(wanted, list) else [wanted])


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("apc_beta")])
def test_apc(name):
    case = CASES[name]
    main = tensor(case["inputs"]["z_v"])
    scores = combined([(get("apc_only", beta=case["params"]["beta"]), {})], main)
    assert (scores > -INF)[0].tolist() == case["expected"]["keep"]
    assert torch.equal(scores.where(scores > -INF, main), main)


def test_apc_only():
    case = CASES["apc_only_b0.2"]
    check(
        combined([(get("apc_only", beta=0.2), {})], tensor(case["inputs"]["z_v"])), case["expected"]
    )


VCD = [
    "vcd_a1.0_b0.1", "vcd_a1.0_b0.2", "vcd_a0.5_b0.1", "vcd_batch2_rowwise",
    "edge_banned_in_main", "edge_banned_in_negative", "edge_banned_in_both",
    "edge_alpha_zero_identity",
]  # fmt: skip


@pytest.mark.parametrize("name", VCD)
def test_vcd(name):
    case = CASES[name]
    values = {k: case["params"][k] for k in ("alpha", "beta")}
    rows = {"noised": tensor(case["inputs"]["z_neg"])}
    main = tensor(case["inputs"]["z_v"])
    scores = combined([(get("vcd", **values), rows)], main)
    assert not scores.isnan().any()
    check(scores, case["expected"])
    if name == "edge_alpha_zero_identity":
        assert torch.equal(scores, main)


def test_vcd_without_mask_is_what_the_margin_uses():
    case = CASES["vcd_a1.0_b0.1"]
    main, noised = tensor(case["inputs"]["z_v"]), tensor(case["inputs"]["z_neg"])
    scores = combined([(get("vcd"), {"noised": noised})], main, masking=False)
    torch.testing.assert_close(scores, 2 * main - noised)


def test_processing_order_is_contrast_then_penalty_then_temperature_then_top_k_then_top_p():
    case = CASES["vcd_pipeline_order"]
    p, expected = case["params"], case["expected"]
    rows = {"noised": tensor(case["inputs"]["z_neg"])}
    scores = combined([(get("vcd", alpha=1.0, beta=0.1), rows)], tensor(case["inputs"]["z_v"]))
    torch.testing.assert_close(scores, tensor(expected["after_contrast"]))
    sampling = Sampling(
        temperature=p["temperature"], top_k=p["top_k"], top_p=p["top_p"], seed=0,
        repetition_penalty=p["repetition_penalty"],
    )  # fmt: skip
    sampler = Sampler(sampling, [0], eos=[])
    penalised = sampler.penalise(scores, [torch.tensor(case["inputs"]["generated_ids"])], 0)
    torch.testing.assert_close(penalised, tensor(expected["after_rep_penalty"]), atol=1e-4, rtol=0)
    possible = {
        int(Sampler(Sampling(**{**vars(sampling), "seed": s}), [0], []).draw(penalised, 0))
        for s in range(200)
    }
    final = next(v for k, v in reversed(expected.items()) if isinstance(v, list))
    assert possible == {i for i, x in enumerate(final) if x not in ("-inf", 0.0)}


@pytest.mark.parametrize(
    "name", ["m3id_paper_t1", "m3id_paper_t10", "m3id_paper_t50", "m3id_gate_closed"]
)
def test_m3id(name):
    case = CASES[name]
    strategy = get("m3id", lam=case["params"]["lambda"], gate=case["params"]["alpha"])
    rows = {"blind": tensor(case["inputs"]["z_u"])}
    check(
        combined([(strategy, rows)], tensor(case["inputs"]["z_c"]), case["params"]["t"]),
        case["expected"],
    )


def test_m3id_weight_growth_and_cap():
    case = CASES["m3id_weight_growth"]
    main, blind = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    l_c = main.log_softmax(-1)
    gap = (l_c - blind.log_softmax(-1))[0, 0]
    for t, weight in zip(case["params"]["t"], case["expected"]["weight"], strict=True):
        for cap, wanted in ((None, weight), (5.0, min(weight, 5.0))):
            scores = combined([(get("m3id", gate=1, cap=cap), {"blind": blind})], main, t)
            assert float((scores - l_c)[0, 0] / gap) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["agla_a2.0_b0.5", "agla_a1.0_b0.5"])
def test_agla(name):
    case = CASES[name]
    rows = {"masked": tensor(case["inputs"]["z_aug"])}
    check(
        combined([(get("agla", **case["params"]), rows)], tensor(case["inputs"]["z_v"])),
        case["expected"],
    )


def test_composition_is_by_increments_and_one_mask():
    """ritual(alpha=3)+vcd: agla's rule at alpha=3, beta=.1 is RITUAL's."""
    case = CASES["ritual_plus_vcd"]
    main = tensor(case["inputs"]["z_v"])
    positive = (get("agla", alpha=3.0, beta=0.1), {"masked": tensor(case["inputs"]["z_pos"])})
    negative = (get("vcd", alpha=1.0, beta=0.1), {"noised": tensor(case["inputs"]["z_neg"])})
    for parts in ([positive, negative], [negative, positive]):
        check(combined(parts, main), case["expected"])


def test_a_single_strategy_is_returned_bit_for_bit():
    main, noised = torch.randn(2, 50), torch.randn(2, 50)
    alone = get("vcd").combine(Step({"main": main, "noised": noised}, torch.ones(2, 1)))
    assert torch.equal(combined([(get("vcd"), {"noised": noised})], main), alone)
