"""What help says behind the options: commands that are understood, code that is shown whole."""

import pytest

from halludecode import serve
from halludecode.cli import epilogs, main
from halludecode.testbed.cli import EPILOG
from tests.support import commands

TEXTS = [EPILOG, *(text for name, text in vars(epilogs).items() if name.isupper())]
COMMANDS = [line.partition("   ")[0] for text in TEXTS for line in commands.shown(text)]


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_every_command_shown_is_understood(line, capsys):
    commands.check(line, main, capsys)


def test_the_client_is_shown_as_it_stands(cli):
    code = serve.__doc__.partition("::\n\n")[2].rstrip()
    assert "import OpenAI" in code and code in cli("serve", "--help").out.replace("\n  ", "\n")
    assert "{" not in epilogs.as_it_stands("words::\n\n    a\n\n    b\n").replace("\b", "")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("list", "copies of a prompt that share one"),
        ("generate", "VLLM_CPU_OMP_THREADS_BIND=nobind"),
        ("eval", "strategies: [greedy, vcd, {vcd: {alpha: 0.5}}"),
        ("score", "under RePOPE's labels"),
        ("compare", "accuracy at greedy's yes-ratio"),
        ("calibrate", "Without one such a strategy refuses"),
        ("heads", "stability over halves"),
        ("sinks", "whatever they show"),
        ("serve", "_running_rows"),
        ("testbed", "testbed-broken they mislead"),
    ],
)
def test_help_says_what_readme_has_no_room_for(cli, command, says):
    told = " ".join(cli(command, "--help").out.split())
    assert says in told
