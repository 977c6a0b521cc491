#!/usr/bin/env bash
# The real lmms-eval on its own POPE task over local pictures; its answers must be those of our `eval`.
#   tests/adapters/try_lmms_eval.sh [FOLDER]    installs lmms-eval and this repository in FOLDER/venv
# With an environment that has both already: PYTHON=its python. ENGINE=vllm, or MODEL=URL of a server.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder" && cd "$folder"
if [ -z "${PYTHON:-}" ]; then
  python3 -m venv venv
  PYTHON=$folder/venv/bin/python
  "$PYTHON" -m pip install -q "lmms-eval==0.7.3" "filelock<4.3" -e "$here[eval]"
fi
export PYTHONPATH=$here HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
spec="vcd(alpha=0.5,beta=0.2)"
"$PYTHON" -m halludecode testbed data --out scenes --count 10
"$PYTHON" -m tests.adapters.local_pope lmms_eval scenes task
"$PYTHON" -m halludecode eval --model testbed --tasks pope --data scenes --strategy "$spec" \
  --prompt-preset llava-1.5 --fresh --output run
"$PYTHON" -m lmms_eval --model halludecode --tasks pope_local --include_path task --batch_size 4 \
  --model_args "pretrained=${MODEL:-testbed}${ENGINE:+,engine=$ENGINE},strategy=\"$spec\"" \
  --log_samples --output_path out
"$PYTHON" -m tests.adapters.local_pope same run out/*/*samples*.jsonl
