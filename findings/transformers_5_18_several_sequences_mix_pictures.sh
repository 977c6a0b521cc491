#!/usr/bin/env bash
# transformers 5.18.0: several sequences of one prompt see each other's pictures.
#
# Since 5.18 `generate` encodes pictures before it repeats the inputs for beams or for
# `num_return_sequences`. The encoded pictures are then repeated one by one (A A B B) and not as the
# group of their prompt (A B A B). With two pictures in a prompt, the first sequence is written about
# A and A, the second about B and B; a picture that a processor cuts into views is mixed the same
# way. No warning is given, and the text is fluent. One picture of one view is not affected.
# 5.19.0 repeats the group.
#
# Below: with top_k=1 every sequence must be the greedy one. In 5.18.0 neither is; in 5.19.0 both are.
# Ends with 0 as long as both releases behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "numpy==2.3.5"
cat > "$work/two_pictures.py" <<'PY'
import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8, projection_dim=32),
    text_config=LlamaConfig(**small, vocab_size=64, initializer_range=0.5),
    image_token_index=5,
    vision_feature_layer=-1,
)
model = LlavaForConditionalGeneration(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=1.2 * parameter[0].numel() ** -0.5)
ids = torch.tensor([[7, *[5] * 4, 8, *[5] * 4, 9, 10]])
given = {
    "input_ids": ids,
    "attention_mask": torch.ones_like(ids),
    "pixel_values": torch.stack([torch.full((3, 16, 16), -2.0), torch.randn(3, 16, 16)]),
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "pad_token_id": 0,
}
(greedy,) = model.generate(**given, do_sample=False)[:, ids.shape[1] :].tolist()
drawn = model.generate(**given, do_sample=True, top_k=1, num_return_sequences=2)
same = [row == greedy for row in drawn[:, ids.shape[1] :].tolist()]
print(f"transformers {transformers.__version__}: sequences that are the greedy one: {same}")
raise SystemExit(same != [transformers.__version__ != "5.18.0"] * 2)
PY
for version in 5.18.0 5.19.0; do
  pip "transformers==$version"
  "$work/venv/bin/python" "$work/two_pictures.py"
done
# Output seen:
# transformers 5.18.0: sequences that are the greedy one: [False, False]
# transformers 5.19.0: sequences that are the greedy one: [True, True]
