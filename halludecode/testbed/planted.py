"""``testbed-planted``: the embedded model with attention sinks written into its weights.

The embedded model has no attention sinks, so a method that moves attention off them has nothing to
move. This edit of its weights gives it some, as trained models have them (arXiv:2503.03321): the
first token and a few image tokens carry massive values in two residual dimensions, and every query
of the layers from `FIRST` on attends to what carries them. Nothing is trained.

1. Two residual dimensions of the decoder and one of the vision tower, those that matter least by
   their weights, are freed: what was written to and read from them becomes 0.
2. The tower's dimension marks `SHARE` of the patches, spread evenly along the picture's rim, where
   there is mostly background: a large position embedding.
3. One hidden unit of the projector answers to the mark and writes M and -M/2 into the decoder's two
   dimensions; the begin token's embedding holds the same. M is so large that phi nears its bound
   and RMSNorm makes the rest of such a token small, its values with it: attention spent on it adds
   next to nothing.
4. In every head of those layers the component that RoPE turns slowest is given up for
   q = const (a bias), k = the first dimension, so that its logit is A for a sink and 0 elsewhere:
   exp(A) = s (N - n) / ((1 - s) n) gives n sinks among N image tokens the share s = `MASS` of image
   attention where the other logits are even.

Everything is computed from the config and the weights, nothing is drawn, and large numbers are
powers of two: the same weights on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData, InvalidModel

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

FIRST = 2  # first layer whose queries attend to sinks
SHARE = 0.03  # of the image tokens are sinks
MASS = 0.35  # of the image attention they get
MASSIVE = 256  # times the root mean square of the word embeddings, at least
MARK = 64  # times the size of a patch's embedding, at least: no picture may drown it
WEIGHTS = "model.safetensors"


def model_path(source: Path) -> Path:
    """Folder of the planted model, made from a source folder on first use and kept in the cache.

    Args:
        source: Folder of the embedded model.

    Returns:
        A folder below ``$HALLUDECODE_CACHE`` or ``~/.cache/halludecode``, named by the content of
        the source and of this module.

    Raises:
        InvalidData: The cache cannot be written.
        InvalidModel: The source is of another architecture.
    """
    from halludecode.testbed.cache import CACHE_VARIABLE, cache_folder

    folder = cache_folder() / f"planted-{_digest(source)}"
    if not (folder / WEIGHTS).is_file():
        try:
            _make(source, folder)
        except OSError as error:
            raise InvalidData(
                f"{folder} cannot be written ({error.strerror}); "
                f"set {CACHE_VARIABLE} to a folder that can."
            ) from None
    return folder


def plant(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict]:
    """Write sinks into weights.

    Args:
        tensors: A LLaVA checkpoint's (CLIP tower, two-layer projector, Llama), by name.
        config: Its config.

    Returns:
        The edited tensors in their own types, and the config with attention biases.

    Raises:
        InvalidModel: Another architecture.
    """
    edited = Planting(tensors, config)
    edited.run()
    about = json.loads(json.dumps(config))
    about["text_config"]["attention_bias"] = True
    kind = tensors[f"{edited.lm}layers.0.self_attn.q_proj.weight"].dtype
    planted = {n: v.to(tensors[n].dtype if n in tensors else kind) for n, v in edited.t.items()}
    return {name: value.contiguous() for name, value in planted.items()}, about


def positions(side: int) -> list[int]:
    """The marked patches of a ``side`` x ``side`` raster: evenly spread along its rim."""
    edge = range(side - 1)
    rim = list(edge)
    rim += [r * side + side - 1 for r in edge]
    rim += [side * side - 1 - c for c in edge]
    rim += [(side - 1 - r) * side for r in edge]
    count = max(1, round(SHARE * side * side))
    return [rim[i * len(rim) // count] for i in range(count)]


def card(source: Path) -> str:
    """What the edit did to a source folder, in Markdown."""
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text("utf-8"))
    edited = Planting(load_file(source / WEIGHTS), config)
    text, side = edited.text, edited.side
    places = ", ".join(f"{p // side}:{p % side}" for p in positions(side))
    template = Path(__file__).parent / "assets" / "PLANTED_CARD.md"
    return template.read_text("utf-8").format(
        dims=edited.dims,
        count=len(positions(side)),
        tokens=side**2,
        places=places,
        first=FIRST,
        last=text["num_hidden_layers"] - 1,
        mass=MASS,
        threshold=20 * math.sqrt(text["hidden_size"] / 4096),
        bound=math.sqrt(text["hidden_size"]),
        phi=math.sqrt(text["hidden_size"] / (1 + 0.5**2)),
    )


class Planting:
    """One checkpoint under edit.

    Args:
        tensors: Copied as float64, so that sums do not depend on the machine.
        config: The model's config.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        import torch

        self.t = {name: value.to(torch.float64, copy=True) for name, value in tensors.items()}
        self.text, self.sight = config.get("text_config", {}), config.get("vision_config", {})
        kinds = (config.get("model_type"), self.text.get("model_type"))
        kinds += (self.sight.get("model_type"),)
        if kinds != ("llava", "llama", "clip_vision_model"):
            raise InvalidModel(f"Sinks are planted into LLaVA with Llama and CLIP, not {kinds}.")
        self.lm = self._prefix("embed_tokens.weight")
        self.tower = self._prefix("embeddings.class_embedding")
        self.bridge = self._prefix("linear_1.weight")
        self.d = self.text.get("head_dim") or (
            self.text["hidden_size"] // self.text["num_attention_heads"]
        )
        self.dims = tuple(self._lightest(*self._decoder()).tolist())
        self.mark = int(self._lightest(*self._vision())[0])

    def run(self) -> None:
        """All steps of the module's first lines."""
        self._free()
        self._mark_patches()
        self._carry()
        for number, layer in enumerate(self._layers(self.lm + "layers.")):
            self._biases(layer)
            if number >= FIRST:
                self._attract(layer)

    @property
    def side(self) -> int:
        """Patches along one side of the picture."""
        return self.sight["image_size"] // self.sight["patch_size"]

    # Where things are -----------------------------------------------------------------------------
    def _prefix(self, ending: str) -> str:
        matches = [name for name in self.t if name.endswith(ending)]
        if len(matches) != 1:
            raise InvalidModel(
                f"Sinks cannot be planted: {len(matches)} tensors end in {ending!r}."
            )
        return matches[0].removesuffix(ending)

    def _layers(self, prefix: str) -> Iterator[str]:
        """Prefixes of the layers below a prefix."""
        count = 0
        while any(name.startswith(f"{prefix}{count}.") for name in self.t):
            yield f"{prefix}{count}."
            count += 1

    def _decoder(self) -> tuple[list[Tensor], list[Tensor]]:
        """What writes to the decoder's residual [D, ..], and what reads it [.., D] (views)."""
        writes = [self.t[self.lm + "embed_tokens.weight"].T]
        writes += [self.t[self.bridge + "linear_2.weight"]]
        reads = [t for name, t in self.t.items() if name.endswith("lm_head.weight")]
        for layer in self._layers(self.lm + "layers."):
            writes += [
                self.t[layer + n] for n in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            ]
            reads += [self.t[f"{layer}self_attn.{n}_proj.weight"] for n in "qkv"]
            reads += [self.t[f"{layer}mlp.{n}_proj.weight"] for n in ("gate", "up")]
        return writes, reads

    def _vision(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same of the vision tower."""
        near = self.tower + "embeddings."
        writes = [self.t[near + "patch_embedding.weight"].flatten(1)]
        writes += [self.t[near + "position_embedding.weight"].T]
        writes += [self.t[near + "class_embedding"][:, None]]
        reads = [self.t[self.bridge + "linear_1.weight"]]
        for layer in self._layers(self.tower + "encoder.layers."):
            for name in ("self_attn.out_proj", "mlp.fc2"):
                writes += [self.t[f"{layer}{name}.weight"], self.t[f"{layer}{name}.bias"][:, None]]
            reads += [self.t[f"{layer}self_attn.{n}_proj.weight"] for n in "qkv"]
            reads += [self.t[layer + "mlp.fc1.weight"]]
        return writes, reads

    def _lightest(self, writes: list[Tensor], reads: list[Tensor]) -> Tensor:
        """The two dimensions of least weight: energy written times energy read."""
        written = sum(w.square().sum(1) for w in writes)
        read = sum(r.square().sum(0) for r in reads)
        return (written * read).argsort(stable=True)[:2]

    # The edit -------------------------------------------------------------------------------------
    def _free(self) -> None:
        """Nothing writes or reads the chosen dimensions any more."""
        for (writes, reads), dims in (
            (self._decoder(), list(self.dims)),
            (self._vision(), [self.mark]),
        ):
            for tensor in writes:
                tensor[dims] = 0
            for tensor in reads:
                tensor[:, dims] = 0
        self.t[self.bridge + "linear_2.bias"][list(self.dims)] = 0

    def _mark_patches(self) -> None:
        """The tower's free dimension is large at some positions, about 0 at the others."""
        near = self.tower + "embeddings."
        place = self.t[near + "position_embedding.weight"]
        patch = self.t[near + "patch_embedding.weight"].flatten(1)
        size = (place.square().mean() + patch.square().sum(1).mean()).sqrt()
        for position in positions(self.side):
            place[1 + position, self.mark] = _power(MARK * float(size))  # after the CLS token
        self.t[self.tower + "pre_layrnorm.weight"][self.mark] = 1
        self.t[self.tower + "pre_layrnorm.bias"][self.mark] = 0

    def _carry(self) -> None:
        """From the mark to massive values of image tokens; the begin token has them too."""
        first, second = (self.t[f"{self.bridge}linear_{i}.weight"] for i in (1, 2))
        unit = int((first.square().sum(1) * second.square().sum(0)).argmin())
        words = self.t[self.lm + "embed_tokens.weight"]
        massive = _power(MASSIVE * float(words.square().mean().sqrt()))
        most = math.sqrt(self.sight["hidden_size"])  # bound of a value after LayerNorm
        first[unit], second[:, unit] = 0, 0
        # A mark is near the bound: the unit says about 8 there, and gelu(-8) = 0 elsewhere.
        first[unit, self.mark] = 16 / most
        self.t[self.bridge + "linear_1.bias"][unit] = -8
        for dim, share in zip(self.dims, (1.0, -0.5), strict=True):
            second[dim, unit] = share * massive / 4
            words[self.text["bos_token_id"], dim] = share * massive

    def _attract(self, layer: str) -> None:
        """Every query of a layer attends to what carries the first dimension."""
        heads, groups = self.text["num_attention_heads"], self.text["num_key_value_heads"]
        slowest = self.d // 2 - 1
        q, k = (self.t[f"{layer}self_attn.{n}_proj.weight"] for n in "qk")
        rows_q, rows_k = ([h * self.d + slowest for h in range(count)] for count in (heads, groups))
        q[rows_q], k[rows_k] = 0, 0
        bound = math.sqrt(self.text["hidden_size"] / (1 + 0.5**2))  # of phi in the first dimension
        k[rows_k, self.dims[0]] = 1 / bound
        self.t[layer + "input_layernorm.weight"][list(self.dims)] = 1
        self.t[layer + "self_attn.q_proj.bias"][rows_q] = self._logit() * math.sqrt(self.d)

    def _biases(self, layer: str) -> None:
        """The config has biases in all attention layers or in none."""
        for name in "qkvo":
            weight = self.t[f"{layer}self_attn.{name}_proj.weight"]
            self.t.setdefault(f"{layer}self_attn.{name}_proj.bias", weight.new_zeros(len(weight)))

    def _logit(self) -> float:
        """A of the module's first lines."""
        every, sinks = self.side**2, len(positions(self.side))
        return math.log(MASS * (every - sinks) / ((1 - MASS) * sinks))


def _power(value: float) -> float:
    """The next power of two: exact in every type, and blind to the last bits of ``value``."""
    return 2.0 ** math.ceil(math.log2(value))


def _digest(source: Path) -> str:
    """Of the source's files and of this one: another edit is another model."""
    hashed = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(source.iterdir()):
        hashed.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return hashed.hexdigest()[:12]


def _make(source: Path, folder: Path) -> None:
    """Builds beside the final place and moves it there whole."""
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_text("utf-8"))
    tensors, about = plant(load_file(source / WEIGHTS), config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        draft = Path(scratch) / folder.name
        shutil.copytree(source, draft)
        save_file(tensors, draft / WEIGHTS, {"format": "pt"})
        (draft / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / WEIGHTS).is_file():  # else another process was quicker
                raise
