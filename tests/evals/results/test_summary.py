from rich.console import Console

from halludecode.evals.results import summary

PLAIN = {"value": 0.8, "low": 0.7, "high": 0.9}


def gap(strategy, value, p=0.001, split="mean", task="pope", **controls):
    d = {"strategy": PLAIN, "baseline": PLAIN, "value": value, "p": p, "p_holm": p}
    d |= {"low": value - 0.01, "high": value + 0.01}
    metrics = {"pope": ("accuracy", "f1"), "chair": ("chair_i", "chair_s", "recall")}[task]
    return {
        "task": task,
        "data": "set",
        "split": split,
        "strategy": strategy,
        "baseline": "greedy",
        "n": 9,
        "metrics": dict.fromkeys(metrics, d),
        "controls": controls,
    }


def told(*gaps):
    found = summary.lines(gaps, {"vcd(alpha=1.0)": "vcd"})
    return {(line.strategy, line.metric.name): line for line in found}, summary.answers(found)


def test_the_mean_speaks_for_its_splits_and_the_surest_gain_is_named():
    lines, answers = told(
        gap("vcd(alpha=1.0)", 0.03),
        gap("vcd(alpha=1.0)", 0.9, split="random"),
        gap("m3id", 0.05),
        gap("var", 0.09, p=0.2),
    )
    assert len(lines) == 6 and {line.split for line in lines.values()} == {"mean"}
    assert lines["vcd", "accuracy"].sure and not lines["var", "accuracy"].sure
    where, said = answers[0]
    assert where == "POPE on set: accuracy"
    assert said.startswith(
        "m3id, by +5.0* [+4.0, +6.0] over greedy; sure: p 0.001 (Holm), it stands"
    )
    assert said.endswith("Also better: vcd.")


def test_a_shift_of_the_yes_ratio_is_no_gain_nor_are_the_metrics_beside_it():
    shift = {"yes_ratio": {"verdict": "only a yes-ratio shift"}}
    lines, answers = told(gap("m3id", 0.05, **shift))
    assert lines["m3id", "accuracy"].verdict == "only a yes-ratio shift"
    assert lines["m3id", "f1"].verdict == "accuracy: only a yes-ratio shift"
    assert answers[0][1] == (
        "None is surely better than greedy. Nearest: m3id, +5.0* [+4.0, +6.0] (only a yes-ratio "
        "shift)."
    )


def test_less_may_be_better_and_nothing_may_be():
    more, less = (gap("m3id", value, split=None, task="chair") for value in (0.05, -0.05))
    assert [said for _, said in told(more)[1]][:2] == ["None is better than greedy."] * 2
    said = told(less)[1][0][1]
    assert said.startswith("m3id, by -5.0* [-6.0, -4.0] over greedy; sure")


def test_the_table_has_a_row_for_each_headline():
    found = summary.lines([gap("m3id", 0.05), gap("m3id", -0.02, split=None, task="chair")], {})
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary.summary_table(found))
    text = captured.get()
    assert "pope set (mean)" in text and "chair set" in text and "+5.0* [+4.0, +6.0]" in text
