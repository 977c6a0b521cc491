"""What halludecode builds on, looked up in the files of a vLLM wheel that cannot be run here.

``python -m tests.support.vllm_wheel WHEEL`` reads names, methods and parameters without importing
anything of vLLM, prints those that are gone, and exits with 1 if there are any (`make check-vllm`).
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from halludecode.engines.vllm.compat import vllm_api


def gone(folder: Path) -> Iterator[str]:
    """Dotted names of `vllm_api` that the package under this folder lacks."""
    import griffe

    loader = griffe.GriffeLoader(search_paths=[folder], allow_inspection=False)
    loader.load("vllm")
    known = loader.modules_collection

    def find(path: str) -> Any:
        try:
            found = known[path]
            return found.final_target if found.is_alias else found
        except (KeyError, griffe.GriffeError):
            return None

    for module, name in sorted(vllm_api.imported()):
        if find(f"{module}.{name}") is None:
            yield f"{module}.{name}"
    for name, places in vllm_api.MOVED.items():
        if not any(find(f"{module}.{name}") for module in places):
            yield f"{name} of {' or '.join(places)}"
    for module, classes in vllm_api.USED.items():
        for name, methods in classes.items():
            owner = find(f"{module}.{name}")
            members = () if owner is None else owner.all_members
            yield from (f"{module}.{name}.{m}" for m in methods if m not in members)
    for (module, name, method), parameters in vllm_api.TAKES.items():
        function = find(f"{module}.{name}.{method}")
        taken = () if function is None else [p.name for p in function.parameters]
        yield from (f"{module}.{name}.{method}({p}=)" for p in parameters if p not in taken)


def main(wheel: str) -> int:
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith("vllm/") and n.endswith(".py")]
            archive.extractall(folder, names)
        lacking = list(gone(Path(folder)))
    print(f"{Path(wheel).name} lacks {len(lacking)} of what halludecode builds on")
    for name in lacking:
        print(f"  {name}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
