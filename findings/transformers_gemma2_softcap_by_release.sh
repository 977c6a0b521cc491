#!/usr/bin/env bash
# Gemma 2 (and PaliGemma 2, whose words it reads): the same weights give other numbers by release of
# transformers, because the bound on attention scores (`attn_logit_softcapping`, 50 in the released
# checkpoints) is heeded or not by the attention that a release takes when none is asked for.
#
# In 5.19.0 the default is SDPA, which drops the bound without a word; asking for "eager" heeds it. In
# 5.24.0 the default is "eager", and SDPA is refused. A small bound (2) shows on a tiny random model
# what a bound of 50 does where scores are large. A comparison of logits, of perplexity or of attention
# weights across these releases compares two models unless attn_implementation="eager" is given to both.
# Ends with 0 as long as both releases behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "numpy==2.3.5"
cat > "$work/bounds.py" <<'PY'
import torch
import transformers
from transformers import Gemma2Config, Gemma2ForCausalLM

config = Gemma2Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
    initializer_range=1.0,
)
torch.manual_seed(0)
model = Gemma2ForCausalLM(config).eval()
ids = torch.tensor([[2, 7, 31, 5, 44, 9]])


def logits(implementation):
    if implementation:
        model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(ids).logits


default = model.config._attn_implementation
apart = (logits(None) - logits("eager")).abs().max().item()
print(f"transformers {transformers.__version__}: default {default!r}, its logits and those of "
      f"'eager' differ by {'nothing' if apart < 1e-4 else 'more than 0.01' if apart > 0.01 else apart}")
expected = {"5.19.0": ("sdpa", True), "5.24.0": ("eager", False)}[transformers.__version__]
raise SystemExit((default, apart > 0.01) != expected)
PY
for release in 5.19.0 5.24.0; do
  pip "transformers==$release"
  "$work/venv/bin/python" "$work/bounds.py" 2> /dev/null
done
# Output seen:
# transformers 5.19.0: default 'sdpa', its logits and those of 'eager' differ by more than 0.01
# transformers 5.24.0: default 'eager', its logits and those of 'eager' differ by nothing
