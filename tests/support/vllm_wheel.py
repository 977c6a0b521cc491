"""What halludecode builds on, looked up in the files of a vLLM wheel that cannot be run here.

``python -m tests.support.vllm_wheel WHEEL`` reads names, methods and parameters without importing
anything of vLLM, prints those that are gone, and exits with 1 if there are any (`make check-vllm`).
Its scheduler is plain Python: with ``--scheduler`` the scheduler's tests then run on that one, too.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from halludecode.engines.vllm.compat import vllm_api
from halludecode.engines.vllm.compat.sources import Sources
from tests.support.processes import REPO, environment

SCHEDULER = ("-m", "pytest", "-q", "-m", "not full", "tests/engines/vllm/scheduler")


def main(wheel: str, *, scheduler: bool = False) -> int:
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith((".py", ".json", "/METADATA"))]
            archive.extractall(folder, names)
        lacking = vllm_api.missing(asked=Sources(Path(folder), REPO))
        print(f"{Path(wheel).name} lacks {len(lacking)} of what halludecode builds on", flush=True)
        for name in lacking:
            print(f"  {name}")
        if lacking or not scheduler:
            return 1 if lacking else 0
        _call_it_cpu(Path(folder))
        code = "import vllm; print('tests of the scheduler on vLLM', vllm.__version__, flush=True)"
        for words in (("-c", code), SCHEDULER):
            done = subprocess.run(
                [sys.executable, *words], cwd=REPO, env=environment(Path(folder)), check=False
            )
            if done.returncode:
                return done.returncode
    return 0


def _call_it_cpu(folder: Path) -> None:
    """VLLM takes the platform from the version that is installed, and refuses to have none."""
    for path in folder.glob("vllm-*.dist-info/METADATA"):
        lines = path.read_text(encoding="utf-8").splitlines()
        marked = [f"{line}+cpu" if line.startswith("Version: ") else line for line in lines]
        path.write_text("\n".join(marked), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[-1], scheduler="--scheduler" in sys.argv))
