"""What the main row decides, whatever the rows beside it hold."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from halludecode.core import logits as hd_math
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.step import Step, combine, decided
from halludecode.core.strategy import Strategy
from halludecode.engines.api import Sampling
from halludecode.engines.sampling import Sampler

MODEL_INFO = typical_model_info()
VOCABULARY, REQUESTS = 16, 6
SPECS = (
    "vcd",
    "vcd(beta=0)",
    "ritual(beta=0.4)",
    "agla",
    "damro",
    "sid",
    "pai",
    "m3id",
    "m3id(gate=0.6)",
    "m3id(gate=1)",
    "vcd+m3id",
    "m3id(gate=1)+apc_only",
    "vcd(beta=0)+agla",
    "dola+vcd",
)
drawn = st.integers(0, 2**31)


def steps_of(plan, main, others, rng):
    """A step per part; ``others`` gives the logits of a row beside main."""
    t = torch.full((len(main), 1), 3)

    def decode(x, norm):
        return torch.zeros(*x.shape[:-1], VOCABULARY)

    made = []
    for part in plan.parts:
        rows = {"main": main, **{name: others() for name in sorted(part.extra)}}
        residuals = {n: torch.zeros(len(main), MODEL_INFO.hidden_size) for n in part.early}
        made.append((part, Step(rows, t, {}, decode, residuals)))
    return made


@given(seed=drawn, spec=st.sampled_from(SPECS), sharp=st.floats(0.1, 6), bans=st.integers(0, 9))
def test_where_main_decides_no_other_row_changes_the_token(seed, spec, sharp, bans):
    rng = torch.Generator().manual_seed(seed)
    plan = compile_plan(spec, MODEL_INFO)
    main = torch.randn(REQUESTS, VOCABULARY, generator=rng) * sharp
    main[:, torch.randperm(VOCABULARY, generator=rng)[:bans]] = hd_math.NEG_INF

    def others():
        made = torch.randn(REQUESTS, VOCABULARY, generator=rng) * sharp
        return made.masked_fill(main == hd_math.NEG_INF, hd_math.NEG_INF)

    alone = steps_of(plan, main, lambda: main, rng)
    sure = decided(alone, main)
    by_main = combine([(p.strategy, step) for p, step in alone], main).scores
    for _ in range(3):
        shown = steps_of(plan, main, others, rng)
        scores = combine([(p.strategy, step) for p, step in shown], main).scores
        for how in (Sampling(), Sampling(temperature=1.3, top_p=0.8, top_k=3, seed=seed)):
            sampler = Sampler(how, range(REQUESTS), [])
            assert (sampler.draw(scores, 2) == sampler.draw(by_main, 2))[sure].all()
        gap = scores.log_softmax(-1).exp() - by_main.log_softmax(-1).exp()
        assert not sure.any() or gap[sure].abs().max() < 1e-5


def test_a_cut_that_leaves_one_token_decides_for_all_parts():
    main = torch.tensor([[5.0, *[0.0] * 5], [0.1, *[0.0] * 5]])
    for spec, want in (
        ("vcd", [True, False]),
        ("vcd+ritual(beta=0)", [True, False]),
        ("vcd(beta=0)", [False, False]),
        ("m3id", [True, False]),
        ("m3id(gate=1)", [False, False]),
        ("m3id+ritual(beta=0)", [False, False]),
        ("m3id+apc_only(beta=0.01)", [True, False]),
    ):
        plan = compile_plan(spec, MODEL_INFO)
        alone = [(part, Step({"main": main}, torch.ones(2, 1))) for part in plan.parts]
        assert decided(alone, main).tolist() == want, spec


class Vague(Strategy):
    """A row beside main, and a cut that is not the last thing, or not the same at every token."""

    name = "vague"

    def branches(self, prompt, state, m):
        from halludecode.core.branch import Branch

        return {"blind": Branch(prompt.without_images())}


def test_a_cut_is_taken_for_one_only_where_it_ends_combine_and_stays():
    class Undone(Vague):
        def combine(self, step):
            return step.plausible(step["blind"], 0.5).clamp_min(-9)

    class Grows(Vague):
        def combine(self, step):
            return step.plausible(step["blind"], 0.1 if int(step.t[0]) < 9 else 0.2)

    class Firm(Vague):
        def combine(self, step):
            return step.plausible(step["blind"], 0.3)

    cuts = [compile_plan(each(), MODEL_INFO).parts[0].cut for each in (Undone, Grows, Firm)]
    assert cuts == [None, None, 0.3]


def test_rows_that_something_else_reads_cannot_wait():
    waiting = {"vcd", "ritual", "agla", "damro", "sid", "pai", "m3id"}
    for spec in waiting:
        assert compile_plan(spec, MODEL_INFO).can_wait, spec
    for spec in ("greedy", "vcd(beta=0)", "m3id(gate=1)", "vhr", "vcd+vhr", "dola", "var", "opera"):
        assert not compile_plan(spec, MODEL_INFO).can_wait, spec
