"""AdaIAT: whole runs written out slowly, and averages read of labelled captions.

What the official code gave is in tests/data/official, see tests/benchmarks/test_parity.py.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from halludecode.analysis.calibration_samples import samples
from halludecode.core.calibration import Calibration, LabelledCaption
from halludecode.core.errors import InvalidData, InvalidParameter
from halludecode.core.plan import compile_plan, typical_model_info
from halludecode.core.spec import get
from tests.support import families, naive, specs
from tests.support.edited_runs import check_run

TEXT = "A dog and a cat on a car."
TOLD = LabelledCaption(TEXT, (TEXT.index("dog"), TEXT.index("car")), (TEXT.index("cat"),))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_whole_run(family_engine, family, tmp_path):
    engine = specs.supplied(family_engine(family), tmp_path)
    spec = "adaiat(alpha=3,beta=0.3)"
    made = engine.plan(spec).parts[0]
    real, false = (made.model_info.artifact[kind] for kind in ("real", "hallucinated"))

    def weights(layer, given, at):
        if layer not in made.layers:
            return given
        enough = false[layer].sum() + 0.3 * (real[layer] - false[layer]).sum()
        for query in range(at.length, len(given[0])):
            written = range(at.length, query + 1)
            paid = sum(head[query][k] for head in given for k in written) / len(written)
            if paid >= enough:
                continue
            for h, head in enumerate(given):
                factor = 1 + 3 * (float(real[layer, h] / false[layer, h]) - 1)
                row = [w * factor if k in written else w for k, w in enumerate(head[query])]
                head[query] = [w / sum(row) for w in row]
        return given

    check_run(engine, family, spec, weights=weights)


def test_averages_are_those_of_plain_forwards(family_engine):
    engine, picture = family_engine("llava"), families.pictures()[1]
    prompt = engine.prompt_of(engine_request(picture))
    cal = Calibration([prompt], lambda r: engine.activations(r, remember=False), [TOLD])
    made = get("adaiat").calibrate(cal, engine.model_info)

    asked = naive.inputs_of(engine.processor, engine.inputs.render(prompt), [picture])
    length = asked["input_ids"].shape[1]

    def paid(before):
        text = engine.inputs.render(prompt.answered(before))
        inputs = naive.inputs_of(engine.processor, text, [picture])
        found = []

        def keep(layer, given):
            found.append([sum(head[-1][length:]) / len(head[-1][length:]) for head in given])
            return given

        with naive.edited(engine.model, weights=keep):
            naive.next_logits(engine.model, inputs, [])
        return torch.tensor(found)

    real = (paid("A") + paid("A dog and a cat on a")) / 2
    torch.testing.assert_close(made["real"], real, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(made["hallucinated"], paid("A dog and a"), atol=1e-5, rtol=1e-3)
    assert cal.notes == ["2 real names, 1 hallucinated names"]


def engine_request(picture):
    import halludecode as hd

    return hd.Request("Describe it.", [picture])


def test_captions_without_a_kind_are_refused(family_engine):
    engine = family_engine("llava")
    prompt = engine.prompt_of(engine_request(families.pictures()[1]))
    only = LabelledCaption("A dog.", (2,), (0,))  # nothing is written before the other
    cal = Calibration([prompt], lambda r: engine.activations(r, remember=False), [only])
    with pytest.raises(InvalidParameter, match=r"no hallucinated thing.*--limit"):
        get("adaiat").calibrate(cal, engine.model_info)
    with pytest.raises(InvalidParameter, match=r"--tasks chair.*samples\.jsonl"):
        get("adaiat").calibrate(replace(cal, answers=["yes"]), engine.model_info)


def test_a_run_of_chair_is_read(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    line = {"task": "chair", "strategy": "greedy", "prompt": "Describe it.", "image": "1.png"}
    line |= {"answer": TEXT, "objects": ["dog", "car"], "data": "d", "split": None, "id": 1}
    line |= {"data_hash": "0", "tokens": 9, "ms": 1.0}
    lines = [{**line, "task": "pope"}, {**line, "strategy": "vcd"}, line, line]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = samples("m", [], tmp_path, path, kind="labels", limit=1)
    assert [(request.prompt, told) for request, told in found] == [("Describe it.", TOLD)]
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InvalidData, match="no caption of the plain model"):
        samples("m", [], tmp_path, path, kind="labels")


def test_needs_layers_and_off():
    made = dict.fromkeys(("real", "hallucinated"), torch.ones(32, 4))
    plan = compile_plan("adaiat", replace(typical_model_info(), artifact=made))
    assert plan.needs == {"mass", "scale_weights"} and plan.cost.rows == 1
    assert plan.parts[0].layers == frozenset(range(5, 18))
    assert compile_plan("adaiat(alpha=0)", replace(typical_model_info(), artifact=made)).parts == ()
