#!/usr/bin/env bash
# transformers 5.18.0: MiniCPM-V 4.6's vision tower reads every picture by the grid of the first.
#
# The tower takes pictures laid end to end with their grids of patches (`target_sizes`). Where it
# merges windows of four patches it takes height and width from the first picture for all. Two
# pictures of as many patches and of other shapes (2 x 8 and 8 x 2) go through without an error or a
# warning, and the second one's features are those of patches that do not lie together; alone it is
# right. The views that its own processor cuts of one picture are often of two shapes, so one picture
# is enough. Where the patches do not divide evenly, an error about a view's shape is raised.
# 5.19.0 windows every picture by its own grid.
#
# Below: features of a picture beside another one, and alone; they must be equal.
# Ends with 0 as long as both releases behave as described.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
pip "torch==2.13.0" "numpy==2.3.5"
cat > "$work/shapes.py" <<'PY'
import torch
import transformers
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import (
    MiniCPMV4_6VisionConfig,
    MiniCPMV4_6VisionModel,
)

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = MiniCPMV4_6VisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=128,
    patch_size=16,
    insert_layer_id=0,
)
tower = MiniCPMV4_6VisionModel(config).eval()
with torch.no_grad():
    for weight in tower.parameters():
        weight.normal_(std=0.3)
grids = {"wide": (2, 8), "tall": (8, 2)}
pixels = {name: torch.randn(1, 3, 16, 16 * h * w) for name, (h, w) in grids.items()}


def features(*names):
    """[patches / 4, hidden] of each picture, encoded together."""
    sizes = torch.tensor([grids[name] for name in names], dtype=torch.int32)
    joined = torch.cat([pixels[name] for name in names], -1)
    with torch.no_grad():
        return tower(joined, target_sizes=sizes).last_hidden_state[0].split(4)


alone, (first, second) = features("tall")[0], features("wide", "tall")
print(
    f"transformers {transformers.__version__}: first picture off by",
    f"{(first - features('wide')[0]).abs().max():.1e}, second by {(second - alone).abs().max():.1e}",
)
assert torch.allclose(first, features("wide")[0], atol=1e-4)
raise SystemExit(torch.allclose(second, alone, atol=1e-4) != (transformers.__version__ != "5.18.0"))
PY
for version in 5.18.0 5.19.0; do
  pip "transformers==$version"
  "$work/venv/bin/python" "$work/shapes.py"
done
# Output seen:
# transformers 5.18.0: first picture off by 0.0e+00, second by 1.2e+00
# transformers 5.19.0: first picture off by 0.0e+00, second by 0.0e+00
