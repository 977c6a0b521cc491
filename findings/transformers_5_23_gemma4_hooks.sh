#!/usr/bin/env bash
# transformers 5.23.0: a hook on a late layer of Gemma 4 sees one token of the prompt.
#
# Layers of Gemma 4 that share the KV of earlier ones hold none of their own. From 5.23.0 on the text
# model drops, before the first of them, all tokens whose logits are not asked for, and `generate`
# asks for the last one's. So whatever reads or edits these layers from outside (forward hooks, an
# attention function of one's own) gets [1, 1, D] where it got the whole prompt, and stacking the
# layers' states fails. Asked for all hidden states by `output_hidden_states`, or for logits by
# positions (`logits_to_keep=torch.tensor([-1])`), all layers compute all tokens, as before.
#
# Below: tokens that each of four layers was given for a prompt of six, the last two sharing KV.
# Ends with 0 as long as both releases behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "numpy==2.3.5"
cat > "$work/hooks.py" <<'PY'
import torch
import transformers
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = Gemma4TextConfig(
    vocab_size=64,
    vocab_size_per_layer_input=64,
    hidden_size=32,
    hidden_size_per_layer_input=8,
    intermediate_size=64,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    global_head_dim=16,
)
model = Gemma4ForCausalLM(config).eval()
ids = torch.arange(5, 11)[None]
given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tokens_of_layers(ask):
    """Tokens that every layer was given."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        ask()
    for hook in hooks:
        hook.remove()
    return seen


found = {
    "generate": tokens_of_layers(lambda: model.generate(**given, max_new_tokens=1, do_sample=False)),
    "by positions": tokens_of_layers(lambda: model(**given, logits_to_keep=torch.tensor([-1]))),
}
print(f"transformers {transformers.__version__}: {found}")
short = transformers.__version__ != "5.22.0"
assert found == {"generate": [6, 6, 1, 1] if short else [6] * 4, "by positions": [6] * 4}
PY
for version in 5.22.0 5.23.0; do
  pip "transformers==$version"
  "$work/venv/bin/python" "$work/hooks.py"
done
# Output seen:
# transformers 5.22.0: {'generate': [6, 6, 6, 6], 'by positions': [6, 6, 6, 6]}
# transformers 5.23.0: {'generate': [6, 6, 1, 1], 'by positions': [6, 6, 6, 6]}
