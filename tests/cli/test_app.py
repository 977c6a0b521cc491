"""Errors become one line and an exit code; standard output keeps only results."""

import pytest

import halludecode
from halludecode import __version__
from halludecode.core import errors

COMMANDS = (
    *("list", "generate", "eval", "score", "compare"),
    *("report", "cite", "doctor", "demo", "testbed"),
)
GENERATE = ("generate", "--model", "m", "--prompt", "p")


def one_line(err):
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err


def loading_raises(monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(halludecode, "load", load, raising=False)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_command_the_help_is_printed(cli, words):
    result = cli(*words)
    assert (result.code, result.err) == (0, "")
    for command in COMMANDS:
        assert f"  {command} " in result.out


def test_version(cli):
    assert cli("--version").out == f"halludecode {__version__}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("evl",), "Did you mean 'eval'"),
        (("generate", "--model", "m"), "--prompt"),
        (("generate", "--colour", "red"), "--colour"),
        ((*GENERATE, "--top-k", "many"), "--top-k"),
        (("testbed", "data"), "--out"),
        (("score", "--task", "pope"), "--predictions"),
        (("eval", "--batch-size", "0"), "--batch-size"),
        (("--colour", "list"), "--colour"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(cli, words, part):
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    line = one_line(result.err)
    assert line.startswith("error: ")
    assert part in line
    assert "--help" in line


@pytest.mark.parametrize(
    "kind",
    [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)],
)
def test_every_error_of_the_family_is_one_line_and_exit_2(cli, monkeypatch, kind):
    loading_raises(monkeypatch, kind("what,\n  where;\twhat to do"))
    result = cli(*GENERATE)
    assert (result.code, result.out) == (2, "")
    assert one_line(result.err) == "error: what, where; what to do\n"


def test_unexpected_error_names_itself_and_the_debug_option(cli, monkeypatch):
    loading_raises(monkeypatch, ZeroDivisionError("by zero"))
    result = cli(*GENERATE)
    assert result.code == 1
    line = one_line(result.err)
    assert "ZeroDivisionError" in line
    assert "--debug" in line


@pytest.mark.parametrize("words", [("--debug", *GENERATE), (*GENERATE, "--debug")])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(cli, monkeypatch, words):
    loading_raises(monkeypatch, errors.InvalidModel("no such model"))
    result = cli(*words)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "error: no such model" in result.err


def test_a_file_that_cannot_be_written_is_bad_input(cli, monkeypatch):
    loading_raises(monkeypatch, PermissionError(13, "Permission denied", "runs/x"))
    result = cli(*GENERATE)
    assert result.code == 2
    assert one_line(result.err) == "error: runs/x: Permission denied\n"


def test_interrupt_is_130(cli, monkeypatch):
    loading_raises(monkeypatch, KeyboardInterrupt())
    result = cli(*GENERATE)
    assert result.code == 130
    assert "interrupted" in one_line(result.err)


def test_a_reader_that_goes_away_is_no_error(cli, monkeypatch):
    loading_raises(monkeypatch, BrokenPipeError(32, "Broken pipe"))
    result = cli(*GENERATE)
    assert (result.code, result.err) == (0, "")


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_to_try(cli, monkeypatch, error):
    loading_raises(monkeypatch, error)
    result = cli(*GENERATE)
    assert result.code == 2
    assert "--dtype bfloat16" in one_line(result.err)


def test_other_runtime_errors_stay_unexpected(cli, monkeypatch):
    loading_raises(monkeypatch, RuntimeError("shapes differ"))
    result = cli(*GENERATE)
    assert result.code == 1
    assert "RuntimeError" in one_line(result.err)
