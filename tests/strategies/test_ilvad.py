"""ILVAD: the official map and forward, the map written out slowly, and what it asks for."""

from __future__ import annotations

import statistics

import pytest
import torch

from benchmarks.parity import difference, read
from halludecode.core.activations import Activations
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from halludecode.engines.api import Request
from halludecode.engines.inputs.chat import to_prompt
from halludecode.views.evidence import risen, stressed, top_half
from tests.support import families

CASES = read("ilvad")["cases"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_official_map_and_forward(case):
    assert difference(CASES[case]) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_the_map_token_by_token(seed):
    layers, heads, steps, count, tau, alpha = 5, 4, 3, 14, 1.2, 5.0
    given = torch.rand(layers, heads, steps, count, generator=torch.Generator().manual_seed(seed))
    w = given.double().tolist()
    paid = [[0.0] * count for _ in range(layers)]
    for n in range(layers):
        for s in range(steps):
            best = sorted(range(heads), key=lambda h: -sum(w[n][h][s]))[: heads // 2]
            for h in best:
                for j in range(count):
                    paid[n][j] += w[n][h][s][j] / len(best) / steps
    means = [sum(each) / count for each in paid]
    every = [sum(paid[n][j] for n in range(layers)) / layers for j in range(count)]
    rises = [0.0] * count
    for j in range(count):
        for n in range(1, layers):
            if paid[n][j] > tau * means[n] and paid[n - 1][j] <= tau * means[n - 1]:
                rises[j] += every[j] > sum(every) / count
    mean, edge = statistics.mean(rises), 3 * statistics.stdev(rises)
    clipped = [min(max(x, mean - edge), mean + edge) for x in rises]
    low, high = min(clipped), max(clipped)
    wanted = torch.tensor([alpha * (x - low) / (high - low) for x in clipped])
    made = risen(given.double(), count, tau, alpha)
    torch.testing.assert_close(made.float(), wanted)
    assert made.max() == alpha


def test_stress_is_by_rank_between_beta_and_one_more_and_outliers_are_clipped():
    grounding = torch.tensor([[0.0, 1.0, 3.0, 9.0], [2.0, 2.0, 7.0, 7.0]])
    among = torch.tensor([[True, True, True, False], [True, True, False, False]])
    made = stressed(grounding, 0.25, among)
    torch.testing.assert_close(made, torch.tensor([[0.25, 0.25 + 1 / 3, 1.25, 1.0], [1.0] * 4]))
    far = torch.tensor([[*[0.0, 1.0] * 10, 100.0]])
    numbers = far[0].tolist()
    edge = statistics.mean(numbers) + 3 * statistics.stdev(numbers)
    made = stressed(far, 0.0, torch.ones(1, 21).bool())[0]
    assert made[-1] == pytest.approx(edge / 100) and made[-1] < 1


def test_nothing_is_edited_where_nothing_is_found():
    ilvad, m = get("ilvad"), typical_model_info()
    one = Activations(image_counts=(2, 3), token_ids=(7,))
    prompt = to_prompt(Request("Why?", [families.pictures()[0]]), "<image>")
    assert ilvad.next_activations(prompt, {"begun": one}, m) == {}
    assert ilvad.prepare({"begun": one}, m)["heat"].values.tolist() == [0.0] * 5
    assert risen(torch.ones(4, 2, 3, 6), 6, 1.0, 5.0).tolist() == [0.0] * 6
    assert stressed(torch.ones(1, 4), 0.3, torch.ones(1, 4).bool()).tolist() == [[1.0] * 4]


def test_what_is_read_of_the_beginning():
    ilvad, m = get("ilvad"), typical_model_info()
    prompt = to_prompt(Request("Why?", [families.pictures()[0]]), "<image>")
    begun = Activations(token_ids=(3, 4, 5), image_counts=(4,))
    read = ilvad.next_activations(prompt, {"begun": begun}, m)["read"]
    assert read.image == tuple(range(m.num_layers)) and read.answered == (3, 4)
    assert read.each_answered == 2 and ilvad.activations(prompt, m)["begun"].write == 10


def test_needs_and_off():
    plan = compile_plan("ilvad", typical_model_info())
    assert {"tally", "key", "activations", "in turn", "weights", "add_scores"} <= plan.needs
    assert plan.rows == ("main",)
    assert compile_plan("ilvad(alpha=0)", typical_model_info()).parts == ()


def test_heads_alike_but_for_rounding_are_chosen_by_their_order():
    values = torch.tensor([1.0, 1.0 + 1e-6, 0.5, 1.0 + 2e-6])[:, None]
    assert top_half(values)[:, 0].tolist() == [True, True, False, False]
