import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halludecode.cli.output import json_document, memory_advice, plain
from halludecode.core.errors import OutOfMemory
from halludecode.engines.api import Timings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(VALUES)
def test_everything_becomes_strict_json(value):
    text = json.dumps(plain(value), allow_nan=False)
    assert plain(json.loads(text)) == plain(value)


def test_plain_reads_the_types_commands_have():
    assert plain(Timings(1.0, 2.0, 3.0, 4))["tokens"] == 4
    assert plain({1: np.float64("nan"), "a": np.array([1, 2])}) == {"1": None, "a": [1, 2]}
    assert plain((Path("a") / "b", float("inf"))) == ["a/b", None]


def test_what_libraries_print_does_not_reach_the_document(capsys):
    with json_document(True) as documents:
        print("a library says hello")
        documents.append({"é": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"é": 1}
    assert err == "a library says hello\n"


def test_without_json_nothing_is_printed(capsys):
    with json_document(False) as documents:
        documents.append({"a": 1})
    assert capsys.readouterr().out == ""


def test_no_document_after_an_error(capsys):
    with pytest.raises(ValueError, match="bad"), json_document(True):
        raise ValueError("bad")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("size", "words"), [(8, "--batch-size 4"), (3, "--batch-size 1"), (None, "--batch-size 1")]
)
def test_half_the_batch_is_advised(size, words):
    with pytest.raises(OutOfMemory, match=words), memory_advice(size):
        raise RuntimeError("out of memory")
