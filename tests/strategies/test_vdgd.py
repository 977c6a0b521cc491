"""VDGD: elbow vectors, evidence and end token by loops, and whole runs written out slowly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import halludecode as hd
from halludecode.core import step as hd_step
from halludecode.core.branch import Branch, Edit
from halludecode.core.errors import InvalidRequest
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.spec import get
from halludecode.core.state import stack
from halludecode.core.step import Step
from halludecode.strategies.vdgd import candidates
from halludecode.views.description import REQUEST, described, evidence, requests
from tests.core.test_combine_vectors import CASES, tensor
from tests.engines.hf.test_branches import ask, registered
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive

ELBOW, CODE = CASES["vdgd_elbow"], CASES["vdgd_code_path"]
FEW = hd.Sampling(max_new_tokens=4, min_new_tokens=4, logprobs=1)


def scores_of(strategy, main, support, end=-1, *, masking=True):
    state = {"evidence": support, "end": torch.full((len(main),), end)}
    made = Step({"main": main}, torch.ones(len(main), 1), state, masking=masking)
    return hd_step.combine([(strategy, made)], main).check()


def close(made, wanted):
    torch.testing.assert_close(made, tensor(wanted), atol=1e-4, rtol=0)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("reduction", ["min", "avg", "sum"])
def test_elbow_vector(reduction):
    main, wanted = tensor(ELBOW["inputs"]["z_v"]), ELBOW["expected"][reduction]
    support = evidence([tensor(ELBOW["inputs"]["z_desc"])], reduction)[None]
    close(-support, wanted["kl"])
    made = scores_of(get("vdgd", reduction=reduction), main, support)
    close(made, wanted["scores"])
    close(made.softmax(-1), wanted["probs"])
    assert int(made.argmax()) == wanted["argmax"]
    assert (
        candidates(main, "elbow")[0].nonzero().flatten().tolist()
        == (ELBOW["expected"]["candidates"])
    )


def test_the_code_path_but_for_its_division_by_the_vocabulary():
    main, wanted = tensor(CODE["inputs"]["z_v"]), CODE["expected"]
    support = evidence([tensor(CODE["inputs"]["z_desc"])], CODE["params"]["kl_reduction"])[None]
    strategy = get("vdgd", reduction="avg", truncation="top_p")
    made = scores_of(strategy, main, support)
    size = CODE["params"]["batchmean_divisor"]
    close(made / size, wanted["scores"])
    close((made / size).softmax(-1), wanted["probs"])


def test_the_division_makes_the_choice_all_but_uniform():
    case = CASES["vdgd_batchmean_V32000"]
    apart = -torch.tensor(case["inputs"]["neg_log_q"])
    divided = (apart / case["params"]["vocab"]).softmax(-1)
    torch.testing.assert_close(divided, torch.tensor(case["expected"]["probs"]), atol=1e-5, rtol=0)
    ours = scores_of(get("vdgd"), torch.tensor([[1.0, 1.0, -9.0]]), torch.tensor([[*apart, -1.0]]))
    assert float(ours.softmax(-1)[0, 0]) > 0.999


def slow_candidates(z: list[float], truncation: str) -> set[int]:
    p = [math.exp(x) for x in naive.log_softmax([2 * x if truncation == "top_p" else x for x in z])]
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if truncation == "top_p":
        count, mass = 0, 0.0
        while mass < 0.5:
            mass, count = mass + p[order[count]], count + 1
    else:
        drops = [p[a] - p[b] for a, b in pairwise(order)]
        count = drops.index(max(drops)) + 1
    return set(order[:count])


def slow_scores(z, table, truncation="elbow", reduction="min", strength=1.0):
    log_q = [naive.log_softmax(row) for row in table]
    among, made = slow_candidates(z, truncation), []
    for w, own in enumerate(z):
        support = [row[w] for row in log_q]
        reduced = {"min": max(support), "avg": sum(support) / len(support), "sum": sum(support)}
        score = (1 - strength) * own + strength * reduced[reduction]
        made.append(score if w in among else -math.inf)
    return made


@pytest.mark.parametrize("truncation", ["elbow", "top_p"])
@pytest.mark.parametrize("reduction", ["min", "avg", "sum"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_rule_in_loops(truncation, reduction, strength):
    rng = torch.Generator().manual_seed(11)
    main = torch.randn(5, 20, generator=rng) * 2
    tables = [torch.randn(n, 20, generator=rng) * 3 for n in (1, 4, 2, 7, 3)]
    support = torch.stack([evidence([table], reduction) for table in tables])
    params = {"truncation": truncation, "reduction": reduction, "strength": strength}
    made = scores_of(get("vdgd", **params), main, support)
    for z, table, scores in zip(main.tolist(), tables, made.tolist(), strict=True):
        wanted = slow_scores(z, table.tolist(), **params)
        assert scores == pytest.approx(wanted, abs=1e-4)


def test_descriptions_of_several_pictures_are_one_table():
    first, second = torch.randn(3, 9), torch.randn(5, 9)
    both = torch.cat([first, second])
    for reduction in ("min", "avg", "sum"):
        assert torch.equal(evidence([first, second], reduction), evidence([both], reduction))


def test_the_end_token_may_keep_its_own_probability():
    rng = torch.Generator().manual_seed(2)
    main, support = torch.randn(40, 8, generator=rng) * 2, -torch.rand(40, 8, generator=rng) * 5
    made = scores_of(get("vdgd", free_end=True), main, support, end=3)
    plain = scores_of(get("vdgd"), main, support, end=3)
    alone = competing = 0
    for z, e, scores, old in zip(main.tolist(), support.tolist(), made, plain, strict=True):
        among = sorted(slow_candidates(z, "elbow"))
        assert (scores > -math.inf).nonzero().flatten().tolist() == among
        own = {i: math.exp(z[i]) for i in among}
        rest = {i: math.exp(e[i]) for i in among if i != 3}
        p = scores.softmax(-1).tolist()
        if 3 not in among:
            torch.testing.assert_close(scores.softmax(-1), old.softmax(-1))
            continue
        alone, competing = alone + (not rest), competing + bool(rest)
        assert p[3] == pytest.approx(own[3] / sum(own.values()), abs=1e-5)
        for i, weight in rest.items():
            assert p[i] == pytest.approx((1 - p[3]) * weight / sum(rest.values()), abs=1e-5)
    assert alone >= 1
    assert competing >= 3


def test_a_description_that_was_cut_has_no_end():
    state = get("vdgd", tokens=2).prepare(
        {
            "0": hd_seen("a b", (4, 5)),
            "1": hd_seen("c", (6,)),
        },
        typical_model_info(),
    )
    assert int(state["end"]) == 6, "the description of one token ended; that of two was cut"
    assert state["text"] == "a b\nc"
    cut = get("vdgd", tokens=2).prepare({"0": hd_seen("a b", (4, 5))}, typical_model_info())
    assert int(cut["end"]) == -1


def hd_seen(text, ids):
    from halludecode.core.activations import Activations

    return Activations(text=text, token_ids=ids, logits=torch.randn(len(ids), 16))


def test_rows_without_a_description_are_left_alone():
    none = get("vdgd").prepare({}, typical_model_info())
    some = get("vdgd").prepare({"0": hd_seen("a", (1, 2))}, typical_model_info())
    state, main = stack([none, some]), torch.randn(2, 16)
    step = Step({"main": main}, torch.ones(2, 1), state)
    made = get("vdgd").combine(step)
    assert torch.equal(made[0], main[0])
    assert not torch.equal(made[1], main[1])


def test_margins_are_not_masked():
    main, support = torch.randn(1, 16), -torch.rand(1, 16)
    assert torch.equal(scores_of(get("vdgd"), main, support, masking=False), support)


# ---------------------------------------------------------------- prompts and plan


def test_requests_quote_the_question_and_show_one_picture_each():
    one, two = (Picture.of(image) for image in families.pictures()[:2])
    turns = (
        Turn("user", (one, "What is {this}?")),
        Turn("assistant", ("A thing.",)),
        Turn("user", (two, "And this?")),
    )
    asked = requests(Prompt(turns))
    assert [p.pictures for p in asked] == [(one,), (two,)]
    assert all(p.question == REQUEST.replace("{question}", "And this?") for p in asked)
    assert requests(Prompt(turns[:1]), "Say {question} twice")[0].question == (
        "Say What is {this}? twice"
    )
    told = described(Prompt(turns), "A cat.\nA dog.")
    assert told.turns[:2] == turns[:2]
    assert told.turns[2].parts == (two, "A cat.\nA dog.\nAnd this?")
    bare = described(Prompt((Turn("user", (one,)),)), "A cat.")
    assert bare.turns[0].parts == (one, "A cat.\n")


def test_a_rendered_prompt_cannot_be_described(family_engine):
    engine = family_engine("llava")
    text = families.FAMILIES["llava"].prompt("What is this?")
    with pytest.raises(InvalidRequest, match="chat template"):
        engine.generate(hd.Request(text, ask().images), "vdgd(tokens=2)", FEW)


def test_what_the_plan_says():
    plan = compile_plan("vdgd", typical_model_info())
    assert plan.needs == {"activations", "main prompt"}
    assert (plan.rows, plan.cost.passes, plan.cost.written) == (("main",), 1, 1024)
    assert "up to 1024 tokens written before" in str(plan.cost)
    assert plan.reusable
    off = compile_plan("vdgd(strength=0)", typical_model_info(), skip_off=False)
    assert (off.needs, off.cost.written) == (frozenset(), 0)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("spec", ["", ",reduction=avg,truncation=top_p", ",strength=0.6"])
def test_a_whole_run(family_engine, family, spec):
    engine, row = family_engine(family), families.FAMILIES[family]
    model, processor, image = engine.model, engine.processor, families.pictures()[2]
    asked = row.prompt(REQUEST.replace("{question}", "What is this?"))
    written = naive.greedy(model, processor, asked, [image], 6, engine.end_tokens)
    text = processor.tokenizer.decode(written.ids, skip_special_tokens=True).strip()
    main = naive.inputs_of(processor, row.prompt(f"{text}\nWhat is this?"), [image])
    table = [scores.tolist() for scores in written.scores]
    values = {
        "reduction": "avg" if "avg" in spec else "min",
        "truncation": "top_p" if "top_p" in spec else "elbow",
        "strength": 0.6 if "strength" in spec else 1.0,
    }

    expected = naive.Answer([], [])
    for _ in range(N):
        z = naive.next_logits(model, main, expected.ids).tolist()
        expected.scores.append(torch.tensor(slow_scores(z, table, **values)))
        allowed = expected.scores[-1].clone()
        allowed[engine.end_tokens] = -math.inf  # the minimum length comes last
        expected.ids.append(int(allowed.argmax()))
    shown = engine.rows(hd.Request("What is this?", [image]), f"vdgd(tokens=6{spec})")["main"]
    assert shown.input_ids.tolist() == main["input_ids"][0].tolist()
    check_run(engine, f"vdgd(tokens=6{spec})", expected, image)


def test_every_other_row_reads_the_description(family_engine):
    engine = family_engine("llava")
    rows = engine.rows(ask(), "vdgd(tokens=5)+vcd+m3id+sid")
    prompts = {name: row.prompt for name, row in rows.items()}
    assert prompts["main"] == prompts["noised"] == prompts["unattended"]
    assert prompts["blind"] == families.FAMILIES["llava"].blind(prompts["main"])
    assert prompts["main"] != engine.rows(ask())["main"].prompt


def test_batches_mix_described_and_text_only_requests(family_engine):
    engine = family_engine("llava")
    mixed = [
        hd.Request("Hello there"),
        ask(),
        hd.Request("Compare.", families.pictures()[1:]),
    ]
    spec = "vdgd(tokens=5)"
    together = engine.generate(mixed, spec, FEW)
    assert together[0].token_ids == engine.generate(mixed[0], "greedy", FEW)[0].token_ids
    for request, batched in zip(mixed, together, strict=True):
        assert engine.generate(request, spec, FEW)[0].token_ids == batched.token_ids


def test_how_far_the_answer_is_from_the_plain_models_is_not_known(family_engine):
    engine = family_engine("llava")
    assert engine.generate(ask(), "vdgd(tokens=5)", FEW)[0].effect is None
    off = engine.generate(ask(), engine.plan("vdgd(strength=0)", skip_off=False), FEW)[0]
    assert off.effect == 0


def shift(image, *, by):
    return image.rotate(int(by))


def test_edits_of_the_main_row_may_read_the_state(family_engine):
    engine = family_engine("llava")

    class Turned(hd.Strategy):
        def prepare(self, activations, m):
            return {"by": torch.tensor([90])}

        def branches(self, prompt, state, m):
            return {"main": Branch(prompt, images=Edit(shift, use=("by",)))}

    image = families.pictures()[0]
    with registered(Turned, "toy_turned") as strategy:
        row = engine.rows(hd.Request("What is this?", [image]), strategy)["main"]
    plain = engine.rows(hd.Request("What is this?", [image.rotate(90)]))["main"]
    assert torch.equal(row.pixel_values, plain.pixel_values)
