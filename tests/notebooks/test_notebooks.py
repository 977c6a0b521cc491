"""The notebooks run as they are, and are committed with what they show."""

import re
from pathlib import Path

import pytest

from tests.support import LONG

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

FOLDER = Path(__file__).parents[2] / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book, kind):
    return [o for cell in code(book) for o in cell.outputs if o.output_type == kind]


def test_the_three_are_there():
    names = {path.stem for path in BOOKS}
    assert names == {"quickstart", "head_sensitivity", "why_did_it_say_that"}


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    assert not outputs(book, "error")
    shown = outputs(book, "display_data") + outputs(book, "execute_result")
    assert any("image/png" in o.data for o in shown)
    text = path.read_text("utf-8")
    assert "/home/" not in text and "/work/" not in text and "/root/" not in text
    assert path.stat().st_size < 3e6


def test_pictures_it_tells_to_ask_about_are_shipped():
    """A command in the words of a page runs as it is copied."""
    from halludecode.engines.inputs.images import load_picture

    told = [
        name
        for path in BOOKS
        for cell in nbformat.read(path, as_version=4).cells
        for name in re.findall(r"--image (\S+)", cell.source)
    ]
    assert told
    for name in told:
        load_picture(name)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=LONG, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert not outputs(book, "error")
    told = [o.text for o in outputs(book, "stream") if o.name == "stderr"]
    assert not [text for text in told if "Traceback" in text or "Warning" in text], told
