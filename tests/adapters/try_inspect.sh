#!/usr/bin/env bash
# The real Inspect on a small task over a running server of the testbed model; answers as of our `eval`.
#   tests/adapters/try_inspect.sh URL [FOLDER]   installs inspect_ai and this repository without its
#   engines in FOLDER/venv; HALLUDECODE is the command of an environment that has them
# First, elsewhere: halludecode serve --model testbed
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
url=$1
folder=${2:-$(mktemp -d)}
mkdir -p "$folder" && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q inspect_ai==0.3.285 openai pillow jinja2
venv/bin/pip install -q --no-deps -e "$here"
spec="vcd(alpha=0.5,beta=0.2)"
export PYTHONPATH=$here SCENES=$folder/scenes
${HALLUDECODE:-$here/.venv/bin/python -m halludecode} testbed data --out scenes --count 10
${HALLUDECODE:-$here/.venv/bin/python -m halludecode} eval --model testbed --tasks pope \
  --data scenes --strategy "$spec" --prompt-preset llava-1.5 --fresh --output run
venv/bin/inspect eval "$here/tests/adapters/inspect_task.py" --model halludecode/testbed \
  --model-base-url "$url" -M "strategy=$spec" --temperature 0 --display plain --log-dir logs
venv/bin/python -m tests.adapters.local_pope same run logs/*.eval
