"""What halludecode builds on, looked up in the files of a vLLM wheel that cannot be run here.

``python -m tests.support.vllm_wheel WHEEL`` reads names, methods and parameters without importing
anything of vLLM, prints those that are gone, and exits with 1 if there are any (`make check-vllm`).
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from halludecode.engines.vllm.compat import vllm_api
from halludecode.engines.vllm.compat.sources import Sources

REPO = Path(__file__).parents[2]


def main(wheel: str) -> int:
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith("vllm/") and n.endswith(".py")]
            archive.extractall(folder, names)
        lacking = vllm_api.missing(asked=Sources(Path(folder), REPO))
    print(f"{Path(wheel).name} lacks {len(lacking)} of what halludecode builds on")
    for name in lacking:
        print(f"  {name}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
