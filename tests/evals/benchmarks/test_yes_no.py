"""The answer rules against the published scripts' own steps, on answers made to be awkward.

The functions below follow the scripts line by line (section and quirk as in their sources), with no
regard to how ours are written; answers are joined from pieces on which the rules disagree.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halludecode.evals.benchmarks.mme import scoring as mme
from halludecode.evals.benchmarks.pope import scoring as pope
from halludecode.evals.benchmarks.yes_no import is_unparsed, parse_mme_answer

PIECES = [
    *("Yes", "yes", "YES", "No", "no", "NO", "Not", "not", "nO", "isn't", "n't", "cannot", "know"),
    *("snow", "eyes", "Noah", "none", "y", "n", "N", "there is", "1,2", "3.5", "", "answer:"),
    *(" ", "  ", ".", ",", "!", "?", "...", "\n", "\u2028", "\u00a0", "-", "/", "_", "'", '"'),
    *("\u201cno\u201d", "\u2019", "n\u2019t", "(no)", "**yes**", "\u0130", "\uff0c", "no,", "No."),
]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=7).map("".join) | st.text(max_size=12)


def official(text):
    """POPE's evaluate.py."""
    if text.find(".") != -1:
        text = text.split(".")[0]
    text = text.replace(",", "")
    words = text.split(" ")
    if "No" in words or "not" in words or "no" in words:
        return "no"
    return "yes"


def opera(text):
    """OPERA's recorder."""
    line = text.replace(".", "").replace(",", "")
    words = line.split(" ")
    if any(word in ["No", "not", "no", "NO"] for word in words) or any(
        word.endswith("n't") for word in words
    ):
        return "no"
    return "yes"


def vcd(text, label):
    """The cell of the confusion matrix that VCD's eval_pope.py adds one to."""
    text = text.lower().strip()
    if label == "yes":
        return "TP" if "yes" in text else "FN"
    return "TN" if "no" in text else "FP"


def vlmevalkit(text):
    """YOrN_Extraction over process_punctuation, as VQA's evaluation wrote it."""
    marks = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-"]
    marks += [">", "<", "@", "`", ",", "?", "!"]
    comma = re.compile(r"(\d)(,)(\d)")
    period = re.compile(r"(?!<=\d)(\.)(?!\d)")
    text = text.lower()
    out = text
    for mark in marks:
        if (mark + " " in text or " " + mark in text) or comma.search(text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = period.sub("", out, int(re.UNICODE))
    words = out.split()
    if "yes" in words and "no" not in words:
        return "yes"
    if "yes" not in words and "no" in words:
        return "no"
    return "other"


def repope(text):
    text = text.lower()
    if "yes" in text:
        return "yes"
    return "no" if "no" in text or "not" in text else "other"


def mme_official(line):
    """MME's calculation.py on one line of a results file, its line end included."""
    _, _, _, pred = line.split("\t")
    pred = pred.lower()
    if pred in ["yes", "no"]:
        return pred
    prefix = pred[:4]
    if "yes" in prefix:
        return "yes"
    return "no" if "no" in prefix else "other"


def mme_lmms_eval(text):
    text = text.lower().strip().replace(".", "")
    if text in ["yes", "no"]:
        return text
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    prefix = text[:4]
    if "yes" in prefix:
        return "yes"
    return "no" if "no" in prefix else "other"


@settings(max_examples=500)
@given(ANSWERS)
def test_pope_rules_read_as_the_scripts_do(text):
    assert pope.parse_answer(text, "official") == official(text)
    assert pope.parse_answer(text, "opera") == opera(text)
    assert pope.parse_answer(text, "vlmevalkit") == vlmevalkit(text)
    assert pope.parse_answer(text, "repope") == repope(text)
    exact = text.lower().strip()
    assert pope.parse_answer(text, "lmms_eval") == (exact if exact in ("yes", "no") else "other")
    cells = {("yes", "yes"): "TP", ("no", "yes"): "FN", ("no", "no"): "TN", ("yes", "no"): "FP"}
    for label in ("yes", "no"):
        assert cells[pope.parse_answer(text, "vcd", label), label] == vcd(text, label)


@settings(max_examples=500)
@given(ANSWERS.filter(lambda text: not set(text) & set("\t\n\r")))
def test_mme_rules_read_as_the_scripts_do(text):
    assert parse_mme_answer(text, "official") == mme_official(f"a.jpg\tQ?\tYes\t{text}\n")
    assert parse_mme_answer(text, "lmms_eval") == mme_lmms_eval(text)
    assert parse_mme_answer(text, "vlmevalkit") == vlmevalkit(text)


# answer, official, opera, vcd where yes and where no is right, lmms_eval, vlmevalkit, repope
DOUBTS = [
    ("", "yes", "yes", "no", "yes", "other", "other", "other"),
    (".", "yes", "yes", "no", "yes", "other", "other", "other"),
    ("?!", "yes", "yes", "no", "yes", "other", "other", "other"),
    ("No.", "no", "no", "no", "no", "other", "no", "no"),
    ("NO.", "yes", "no", "no", "no", "other", "no", "no"),
    ("nO", "yes", "yes", "no", "no", "no", "no", "no"),
    ("Not", "yes", "yes", "no", "no", "other", "other", "no"),
    ("yes, no", "no", "no", "yes", "no", "other", "other", "yes"),
    ("no, yes", "no", "no", "yes", "no", "other", "other", "yes"),
    ("Yes,no", "yes", "yes", "yes", "no", "other", "other", "yes"),
    ("\u201cNo\u201d", "yes", "yes", "no", "no", "other", "other", "no"),
    ('"No"', "yes", "yes", "no", "no", "other", "no", "no"),
    ("\nNo", "yes", "yes", "no", "no", "no", "no", "no"),
    ("No\n", "yes", "yes", "no", "no", "no", "no", "no"),
    ("Yes\nno", "yes", "yes", "yes", "no", "other", "other", "yes"),
    ("No\tdog", "yes", "yes", "no", "no", "other", "no", "no"),
    ("  No  ", "no", "no", "no", "no", "no", "no", "no"),
    ("isn't", "yes", "no", "no", "yes", "other", "other", "other"),
    ("isn\u2019t", "yes", "yes", "no", "yes", "other", "other", "other"),
    ("n't", "yes", "no", "no", "yes", "other", "other", "other"),
    ("Yes. It is not a cat.", "yes", "no", "yes", "no", "other", "yes", "yes"),
    ("There is. No dog", "yes", "no", "no", "no", "other", "no", "no"),
    ("...no", "yes", "no", "no", "no", "other", "no", "no"),
    ("A snowboard", "yes", "yes", "no", "no", "other", "other", "no"),
    ("yesterday", "yes", "yes", "yes", "yes", "other", "other", "yes"),
    ("no-one", "yes", "yes", "no", "no", "other", "no", "no"),
    ("no - one", "no", "no", "no", "no", "other", "no", "no"),
    ("2,3 no/none", "yes", "yes", "no", "no", "other", "other", "no"),
]


@pytest.mark.parametrize("case", DOUBTS, ids=lambda case: repr(case[0]))
def test_odd_answers(case):
    text, *wanted = case
    read = [
        pope.parse_answer(text, "official"),
        pope.parse_answer(text, "opera"),
        pope.parse_answer(text, "vcd", "yes"),
        pope.parse_answer(text, "vcd", "no"),
        *(pope.parse_answer(text, rule) for rule in ("lmms_eval", "vlmevalkit", "repope")),
    ]
    assert read == wanted


@pytest.mark.parametrize(
    ("text", "unparsed"),
    [
        ("YES", False),
        ("no.", False),
        ("'No'", False),
        ("\u201cyes\u201d", False),
        ("not", True),
        ("nope", True),
        ("yesno", True),
        ("", True),
        ("I know", True),
        ("isn't", True),
    ],
)
def test_unparsed_is_about_the_words_yes_and_no(text, unparsed):
    assert is_unparsed(text) is unparsed


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Ayes", "yes"),
        ("A yes", "other"),  # the first four letters are "a ye"
        (" yes", "yes"),
        ("  yes", "other"),
        ("  no", "no"),
        ("   no", "other"),
        ("noyes", "no"),  # "noye" holds no yes
        ("No, yes", "no"),
        ("yes/no", "yes"),
        ("\u201cno\u201d", "no"),
        ("k n o", "other"),
        ("YES", "yes"),
        ("...no", "other"),
    ],
)
def test_mme_looks_at_the_first_four_letters(text, parsed):
    assert parse_mme_answer(text) == parsed


def test_mme_truths_in_any_case(tmp_path):
    rows = ["a.jpg\tQ\tYES\tyes", "a.jpg\tQ\tno\tNo", "b.jpg\tQ\t yes\tno", "b.jpg\tQ\tNo \tno"]
    (tmp_path / "count.txt").write_text("\n".join(rows))
    asked, answers = mme.load_results(tmp_path)
    assert [q.label for q in asked] == ["yes", "no", "yes", "no"]
    result = mme.score(asked, answers)
    assert (result.metrics["count.acc"], result.metrics["count.acc_plus"]) == (0.75, 0.5)


def test_mme_keeps_what_stands_in_an_answer(tmp_path):
    rows = [
        "a.jpg\tQ\tYes\t yes ",
        "a.jpg\tQ\tNo\t",
        "b.jpg\tQ\tYes\tye\u2028s",
        "b.jpg\tQ\tNo\tno\r",
    ]
    (tmp_path / "count.txt").write_bytes("\r\n".join(rows).encode())
    _, answers = mme.load_results(tmp_path)
    assert list(answers.values()) == [" yes ", "", "ye\u2028s", "no\r"]


def test_a_picture_may_be_asked_about_twice_over(tmp_path):
    rows = ["a.jpg\tQ\tYes\tyes", "a.jpg\tQ\tNo\tyes", "a.jpg\tR\tYes\tyes", "a.jpg\tR\tNo\tno"]
    (tmp_path / "count.txt").write_text("\n".join(rows))
    result = mme.score(*mme.load_results(tmp_path))
    assert (result.metrics["count.acc"], result.metrics["count.acc_plus"]) == (0.75, 0.5)
