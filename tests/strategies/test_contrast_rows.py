"""Strategies that contrast with another row, and FLB: vectors, loops, rows and whole runs.

Numbers that the official code gave are in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import math

import pytest
import torch

import halludecode as hd
from halludecode.core import step as hd_step
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.spec import get
from halludecode.core.step import Step
from halludecode.strategies.avisc import blind
from halludecode.strategies.code import REQUEST
from halludecode.strategies.icd import ROLES
from halludecode.strategies.mod import attended
from halludecode.views.named import named
from halludecode.views.unrelated import drawing
from tests.core.test_combine_vectors import CASES, check, tensor
from tests.engines.hf.test_naive_parity import N
from tests.engines.hf.test_naive_parity import check as check_run
from tests.support import families, naive

INF = math.inf


def scores(strategy, main, rows, t=1, first=None):
    at = torch.full((len(main), 1), t)
    step = Step({"main": main, **rows}, at, first=first)
    return hd_step.combine([(strategy, step)], main).check()


def close(made, wanted):
    torch.testing.assert_close(made, tensor(wanted), atol=2e-4, rtol=1e-5)


def loops(main, other, weight, keep):
    """z + weight(z, o) * (z - o) on kept tokens, by loops in float64."""
    made = []
    for z, o in zip(main.double().tolist(), other.double().tolist(), strict=True):
        w, kept = weight(z, o), keep(z, o)
        made.append([a + w * (a - b) if k else -INF for a, b, k in zip(z, o, kept, strict=True)])
    return made


def softmax(z):
    return [math.exp(x) for x in naive.log_softmax(z)]


def jensen_shannon(z, o, *, swapped=False):
    p, q = softmax(z), softmax(o)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    sides = [(m, p), (m, q)] if swapped else [(p, m), (q, m)]
    return sum(a * math.log(a / b) for x, y in sides for a, b in zip(x, y, strict=True)) / 2


@pytest.fixture
def rows():
    return torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(8)) * 2


def prompt_of(count=1, question="What is this?"):
    pictures = [Picture.of(image) for image in families.pictures()[:count]]
    return Prompt((Turn("system", ("Be brief.",)), Turn("user", (*pictures, question))))


# ---------------------------------------------------------------- published vectors


def test_icd_is_the_released_rule_and_not_the_printed_one():
    case = CASES["icd_code_a1"]
    main, other = tensor(case["inputs"]["z_v"]), tensor(case["inputs"]["z_neg"])
    made = scores(get("icd", alpha=1.0, beta=0.1), main, {"disturbed": other})
    check(made, case["expected"])
    printed = CASES["icd_paper_lambda1"]["expected"]["scores"]
    assert not torch.allclose(made, tensor(printed), atol=1e-2)


@pytest.mark.parametrize("power", [0.2, 0.7])
def test_code_vectors(power):
    case = CASES[f"code_alpha{power}"]
    keys = list(case["inputs"])
    main, other = tensor(case["inputs"]["z_v"]), tensor(case["inputs"][keys[1]])
    check(scores(get("code", power=power), main, {"described": other}), case["expected"])


@pytest.mark.parametrize("alpha", ["1.0", "2.5", "3.0"])
def test_avisc_vectors(alpha):
    case = CASES[f"avisc_combine_a{alpha}"]
    main, other = tensor(case["inputs"]["z_v"]), tensor(case["inputs"]["z_neg"])
    strategy = get("avisc", alpha=float(alpha), beta=0.1)
    check(scores(strategy, main, {"blind tokens": other}), case["expected"])


# ---------------------------------------------------------------- the rules in loops


def test_lcd_in_loops(rows):
    main, other = rows

    def weight(_, o):
        p = softmax(o)
        return 1.5 / -sum(x * math.log(x) for x in p)

    wanted = loops(main, other, weight, lambda z, _: naive.plausible(z, 0.1))
    close(scores(get("lcd", alpha=1.5), main, {"blind": other}), wanted)
    sure = torch.full((1, 20), -900.0)
    sure[0, 3] = 0
    bounded = scores(get("lcd", most=7.0, beta=0.0), main[:1], {"blind": sure})
    close(bounded, (main[:1] + 7 * (main[:1] - sure)).tolist())


@pytest.mark.parametrize("kind", ["js", "reversed"])
def test_cicd_in_loops(rows, kind):
    main, other = rows
    other[0] = main[0] + 1e-3 * other[0]  # below the gate
    other[1] = main[1] + 0.05 * other[1]  # the bound
    gaps = []

    def weight(z, o):
        gaps.append(jensen_shannon(z, o, swapped=kind == "reversed"))
        return min(3, 1 - math.log10(min(1, gaps[-1]))) if gaps[-1] > 1e-4 else 0

    wanted = loops(main, other, weight, lambda z, _: naive.plausible(z, 0.1))
    made = scores(get("cicd", divergence=kind), main, {"unrelated": other})
    torch.testing.assert_close(made, tensor(wanted), atol=2e-3, rtol=1e-4)
    assert gaps[0] < 1e-4 < gaps[1] < 1e-2 < max(gaps)


def test_code_in_loops(rows):
    main, other = rows
    far = []

    def apart(z, o):
        pairs = zip(softmax(z), softmax(o), strict=True)
        far.append(sum(math.log2(abs(a - b) ** 0.4 + 1) * (a + b) for a, b in pairs) / 2)
        return far[-1]

    def keep(z, _):
        p = softmax(z)
        return [x >= 0.5 * far[-1] * max(p) for x in p]

    wanted = loops(main, other, lambda z, o: 0.5 * (1 - apart(z, o)), keep)
    close(scores(get("code", power=0.4, strength=0.5), main, {"described": other}), wanted)
    assert all(0 <= d <= 1 for d in far)


def test_mod_in_loops_each_request_by_its_own_first_token(rows):
    main, other = rows
    first = {"main": main.flip(0), "attended": main.flip(0) + torch.linspace(0, 1.5, 6)[:, None]
             * other}  # fmt: skip
    made = scores(get("mod"), main, {"attended": other}, 5, first).tolist()
    seen = set()
    for i, (z, o) in enumerate(zip(main.tolist(), other.tolist(), strict=True)):
        gap = jensen_shannon(first["main"][i].tolist(), first["attended"][i].tolist())
        seen.add(gap < 0.05)
        kept = naive.plausible(z, 0.5)
        for a, b, k, score in zip(z, o, kept, made[i], strict=True):
            wanted = a + 4 * b if gap < 0.05 else 2 * a - b
            assert score == pytest.approx(wanted if k else -INF, abs=1e-4)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("name", "row"),
    [("code", "described"), ("lcd", "blind"), ("cicd", "unrelated"), ("mod", "attended"),
     ("icd", "disturbed"), ("vdd", "blind"), ("avisc", "blind tokens"), ("rscd", "shifted")],
)  # fmt: skip
def test_banned_tokens_stay_banned_and_make_no_nan(name, row, rows):
    main, other = rows
    main[:, 2], other[:, 2], other[:, 5] = -INF, -INF, -INF
    made = scores(get(name), main, {row: other})
    assert not made.isnan().any()
    assert not (made == INF).any()
    assert (made[:, 2] == -INF).all()


# ---------------------------------------------------------------- the first token's logits


def test_the_first_tokens_logits_are_those_before_any_ban(family_engine):
    """What was banned for token 1 alone must not be banned for good."""
    engine = family_engine("llava")
    seen = []

    class Looks(hd.Strategy):
        def combine(self, step):
            seen.append((step["main"].clone(), step.first().clone()))
            return step["main"]

    from tests.engines.hf.test_branches import ask, registered

    with registered(Looks, "toy_looks") as strategy:
        sampling = hd.Sampling(max_new_tokens=4, allowed_token_ids=list(range(5, 25)))
        engine.generate([ask(), hd.Request("Why?", [families.pictures()[1]])], strategy, sampling)
    del seen[:3]  # tracing
    main, first = seen[0]
    assert (main[:, :5] == -INF).all()
    assert first.isfinite().all()
    assert len(seen) == 4
    assert all(torch.equal(kept, first[: len(kept)]) for _, kept in seen)


def test_rows_read_at_the_first_token_do_not_wait():
    plans = {name: compile_plan(name, typical_model_info()) for name in ("mod", "avisc", "flb+vcd")}
    assert {name: plan.can_wait for name, plan in plans.items()} == {
        "mod": False, "avisc": True, "flb+vcd": True,
    }  # fmt: skip
    assert not compile_plan("mod+vcd", typical_model_info()).can_wait


def test_flb_runs_on_a_models_own_generate(family_engine):
    engine = family_engine("llava")
    model, image = engine.model, families.pictures()[0]
    text = families.FAMILIES["llava"].prompt("What is this?")
    inputs = naive.inputs_of(engine.processor, text, [image])
    given = {k: v for k, v in inputs.items() if v is not None}
    with hd.applied(model, engine.processor, "flb(gamma=4.0,lam=1.0)"):
        ids = model.generate(**given, max_new_tokens=6, do_sample=False)
    asked = hd.Request("What is this?", [image])
    wanted = engine.generate(asked, "flb(gamma=4.0,lam=1.0)", hd.Sampling(max_new_tokens=6))[0]
    written = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert written[: len(wanted.token_ids)] == list(wanted.token_ids)


# ---------------------------------------------------------------- prompts of the rows


def test_icd_puts_the_role_before_the_question_or_in_the_system_message():
    prompt = prompt_of()
    branch = get("icd").branches(prompt, {}, typical_model_info())["disturbed"]
    assert branch.prompt.question == ROLES["confused"] + " What is this?"
    assert branch.prompt.pictures == prompt.pictures
    other = get("icd", words="Guess.", place="system")
    turns = other.branches(prompt, {}, typical_model_info())["disturbed"].prompt.turns
    assert turns == (Turn("system", ("Guess.",)), prompt.turns[1])


def test_icd_cannot_reword_a_rendered_prompt(family_engine):
    text = families.FAMILIES["llava"].prompt("What is this?")
    with pytest.raises(InvalidRequest, match="chat template"):
        family_engine("llava").generate(hd.Request(text, families.pictures()[:1]), "icd")


@pytest.mark.parametrize("family", list(families.FAMILIES))
@pytest.mark.parametrize("place", ["question", "system"])
def test_the_role_reaches_every_familys_row(family_engine, family, place):
    """A template that drops the system message would make the contrast silently nothing."""
    engine, spec = family_engine(family), f"icd(place={place},words='Guess wildly.')"
    request = hd.Request("What is this?", families.pictures()[:1])
    if place == "system" and engine.processor.chat_template is None:
        with pytest.raises(InvalidRequest, match="no chat template"):
            engine.rows(request, spec)
        return
    assert "Guess wildly." in engine.rows(request, spec)["disturbed"].prompt


def test_vdd_rows():
    rows = get("vdd", mode="both", unk="<?>").branches(prompt_of(2), {}, typical_model_info())
    assert rows["blind"].prompt == prompt_of(2).without_images()
    assert rows["unknown"].prompt.turns[1].parts == ("<?>\n<?>\nWhat is this?",)
    broken = Prompt((Turn("user", (*prompt_of().pictures, "\nWhy?")),), raw=True)
    assert broken.words_for_pictures(["<?>"]).turns[0].parts == ("<?>\nWhy?",)
    assert [list(get("vdd", mode=mode).branches(prompt_of(), {}, typical_model_info()))
            for mode in ("none", "unk")] == [["blind"], ["unknown"]]  # fmt: skip


def test_code_puts_each_description_in_its_pictures_place(family_engine):
    engine = family_engine("llava")
    one, two, _ = families.pictures()
    request = hd.Request("Compare.", [one, two])
    alone = [
        engine.generate(
            hd.Request(REQUEST, [image]),
            "greedy",
            hd.Sampling(max_new_tokens=5),
        )[0].text
        for image in (one, two)
    ]
    row = engine.rows(request, "code(tokens=5)")["described"]
    first, second = alone
    assert f"{first}\n{second}\nCompare." in row.prompt
    assert row.pixel_values is None
    assert compile_plan("code(strength=0)", typical_model_info(), skip_off=False).cost.passes == 0


def test_a_whole_run_of_code(family_engine):
    engine, row = family_engine("qwen2_5_vl"), families.FAMILIES["qwen2_5_vl"]
    image, model, processor = families.pictures()[1], engine.model, engine.processor
    asked = row.prompt(REQUEST)
    told = naive.greedy(model, processor, asked, [image], 5, engine.end_tokens)
    text = processor.tokenizer.decode(told.ids, skip_special_tokens=True).strip()
    shown = engine.rows(hd.Request("What is this?", [image]), "code(tokens=5)")["described"].prompt
    assert f"{text}\nWhat is this?" in shown
    main = naive.inputs_of(processor, row.prompt("What is this?"), [image])
    other = naive.inputs_of(processor, shown)
    strategy = get("code")

    def combine(z, o):
        return scores(strategy, torch.tensor([z]), {"described": torch.tensor([o])})[0].tolist()

    wanted = naive.contrast(model, main, other, lambda z, o, _: combine(z, o), N, engine.end_tokens)
    check_run(engine, "code(tokens=5)", wanted, image)


def test_cicd_shows_another_picture(tmp_path):
    edit = get("cicd").branches(prompt_of(), {}, typical_model_info())["unrelated"].images
    image = prompt_of().pictures[0].image
    shown = edit(image, edited="a", index=0)
    assert shown.size == image.size
    assert shown.tobytes() == drawing(0).resize(image.size).tobytes() != image.tobytes()
    assert drawing(0).tobytes() != drawing(1).tobytes()
    file = tmp_path / "other.png"
    families.pictures()[2].save(file)
    given = get("cicd", picture=str(file)).branches(prompt_of(), {}, typical_model_info())
    other = given["unrelated"].images(image, edited="a", index=0)
    assert other.tobytes() == families.pictures()[2].convert("RGB").tobytes()
    missing = get("cicd", picture=str(tmp_path / "none.png"))
    edit = missing.branches(prompt_of(), {}, typical_model_info())["unrelated"].images
    with pytest.raises(InvalidParameter, match=r"none\.png.*give the path of an image file"):
        edit(image, edited="a", index=0)


@pytest.mark.parametrize(
    ("question", "which"),
    [
        ("What is in image 2?", {1}),
        ("Compare the first picture with Image-3.", {0, 2}),
        ("In the last view, is it red?", {2}),
        ("Is the 2nd photo darker than figure #1?", {0, 1}),
        ("What is in image 12?", set()),
        ("Why are there 2 images?", set()),
        ("Imagine 3 imageries.", set()),
    ],
)
def test_pictures_are_named_by_number_or_place(question, which):
    assert named(question, 3) == which


def test_rscd_leaves_out_the_named_picture_and_all_where_none_is_named():
    m = typical_model_info()
    one, two = prompt_of(2).pictures
    branch = get("rscd").branches(prompt_of(2, "What is in image 2?"), {}, m)["shifted"]
    assert branch.prompt.turns[1].parts == (one, "What is in image 2?")
    branch = get("rscd").branches(prompt_of(2, "And the first view?"), {}, m)["shifted"]
    assert branch.prompt.turns[1].parts == (two, "And the first view?")
    branch = get("rscd").branches(prompt_of(2), {}, m)["shifted"]
    assert branch.prompt == prompt_of(2).without_images()


@pytest.mark.parametrize(("name", "row"), [("avisc", "blind tokens"), ("mod", "attended")])
def test_features_of_tokens_not_chosen_are_zero(family_engine, name, row):
    engine = family_engine("llava")
    images = families.pictures()[:2]
    request = hd.Request("Compare.", images)
    text = engine.rows(request)["main"].prompt
    inputs = naive.inputs_of(engine.processor, text, images)
    given = {k: v for k, v in inputs.items() if v is not None}
    before = engine.model.config.get_text_config()._attn_implementation
    engine.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = engine.model(**given, output_attentions=True).attentions
    finally:
        engine.model.set_attn_implementation(before)
    at = inputs["input_ids"][0] == engine.model.config.image_token_id
    seen = torch.stack([layer[0, :, -1, at].mean(0) for layer in maps])
    kept = blind(seen, 0.5, 1.0) if name == "avisc" else attended(seen, 0.2)
    embeds = engine.rows(request, name)[row].embeds
    assert (embeds.abs().sum(-1) > 0).tolist() == kept.tolist()
    assert 0 < kept.sum() < len(kept)
