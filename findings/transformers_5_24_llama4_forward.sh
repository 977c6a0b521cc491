#!/usr/bin/env bash
# transformers 5.24.0: Llama 4 with pictures (Llama4ForConditionalGeneration) cannot be run at all.
#
# Its forward ends by copying `image_outputs` from what its language model returned, and that has no
# such field, so every call ends in an AttributeError after the whole computation, with a picture or
# with words alone; `return_dict=False`, or 5.23.0, is the way round. The language model by itself
# (Llama4ForCausalLM) is not touched.
# Ends with 0 as long as both releases behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "numpy==2.3.5"
cat > "$work/words.py" <<'PY'
import torch
import transformers
from transformers import (
    Llama4Config, Llama4ForConditionalGeneration, Llama4TextConfig, Llama4VisionConfig,
)

vision = Llama4VisionConfig(
    hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, image_size=64,
    patch_size=8, projector_input_dim=128, projector_output_dim=128, vision_output_dim=128,
)
text = Llama4TextConfig(
    vocab_size=100, hidden_size=64, intermediate_size=128, intermediate_size_mlp=128,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    num_local_experts=4, pad_token_id=0,
)
torch.manual_seed(0)
model = Llama4ForConditionalGeneration(Llama4Config(vision_config=vision, text_config=text)).eval()
try:
    with torch.no_grad():
        told = f"logits {tuple(model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape)}"
except AttributeError as error:
    told = f"AttributeError: {error}"
print(f"transformers {transformers.__version__}: {told}")
raise SystemExit(("image_outputs" in told) != (transformers.__version__ == "5.24.0"))
PY
for release in 5.23.0 5.24.0; do
  pip "transformers==$release"
  "$work/venv/bin/python" "$work/words.py" 2> /dev/null
done
# Output seen:
# transformers 5.23.0: logits (1, 3, 100)
# transformers 5.24.0: AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
