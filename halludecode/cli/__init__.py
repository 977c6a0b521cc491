"""The command line: ``halludecode`` and ``python -m halludecode``.

Commands are thin: each calls one library function. One module per group; `halludecode.cli.app`
puts them together and turns errors into exit codes.
"""

from halludecode.cli.app import main

__all__ = ["main"]
