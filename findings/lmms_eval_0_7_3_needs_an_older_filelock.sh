#!/usr/bin/env bash
# lmms-eval 0.7.3 beside filelock 4.3.1: every evaluation stops before its first task.
#
# `simple_evaluate` begins with a function of lmms_eval/evaluator.py that rewrites a class of
# `filelock._api`, a private module. filelock 4.3.1 has no such module, and lmms-eval states no bound
# on filelock, so a fresh install takes the newest: the error is a ModuleNotFoundError about filelock,
# whatever model or task was asked for. An older one, such as 3.25.0, is the cure.
#
# Below that function is taken out of the installed wheel as it is and called, as the first line of an
# evaluation does; the rest of the harness (torch and more) is not needed for it.
# Ends with 0 as long as both releases of filelock behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip --no-deps "lmms_eval==0.7.3"
pip "datasets==5.2.0"
cat > "$work/first_call.py" <<'PY'
import ast
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

package = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0])
source = (package / "evaluator.py").read_text(encoding="utf-8")
name = "_enable_reentrant_filelocks"
(function,) = (
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef) and node.name == name
)
scope = {"os": os}
exec(compile(ast.Module([function], []), "evaluator.py", "exec"), scope)
try:
    scope[name]()
    told = "goes on"
except ModuleNotFoundError as error:
    told = f"stops: {error}"
print(f"lmms_eval {version('lmms_eval')}, filelock {version('filelock')}: {told}")
raise SystemExit(told.startswith("goes on") != version("filelock").startswith("3."))
PY
for filelock in 3.25.0 4.3.1; do
  pip "filelock==$filelock"
  "$work/venv/bin/python" "$work/first_call.py"
done
# Output seen:
# lmms_eval 0.7.3, filelock 3.25.0: goes on
# lmms_eval 0.7.3, filelock 4.3.1: stops: No module named 'filelock._api'
