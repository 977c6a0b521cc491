"""``python -m halludecode`` is the ``halludecode`` command."""

import sys

from halludecode.cli import main

if __name__ == "__main__":
    sys.exit(main())
