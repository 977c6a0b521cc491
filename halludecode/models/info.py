"""What strategies and engines read of a model's config: its numbers, and its end tokens."""

from __future__ import annotations

from typing import Any

from halludecode.core.model_info import ModelInfo, VisionInfo
from halludecode.models.families import family_of

# What transformers calls layers that keep a state in place of keys.
RECURRENT = ("conv", "linear_attention")
# Towers whose processors make views of one size.
SQUARE = frozenset({"clip_vision_model", "siglip_vision_model", "internvl_vision"})
# Of a tower that has no layers to look into: what asks for them is refused by the family's row,
# before any number is used.
UNLIKE = VisionInfo(24, 16, has_cls=False, feature_layer=-1)


def model_info(config: Any) -> ModelInfo:
    """The model's numbers, as strategies see them.

    Args:
        config: Of a model of a known family, as transformers loads it.

    Raises:
        InvalidModel: The family is unknown.
    """
    text = config.get_text_config()
    plain = _layer(text)
    heads = text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or ()
    return ModelInfo(
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(plain, "num_key_value_heads", None) or heads,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        head_dim=getattr(plain, "head_dim", None) or text.hidden_size // heads,
        vision=vision_info(config),
        mrope=family_of(config).mrope,
        rope=rope_of(text),
        recurrent=tuple(i for i, kind in enumerate(kinds) if kind in RECURRENT),
        scheme=getattr(config, "halludecode_scheme", None) or "",
    )


def _layer(text: Any) -> Any:
    """Where a decoder's numbers are: of its first layer, where they are not those of all."""
    return text if not getattr(text, "is_heterogeneous", False) else text.per_layer_config[0]


def rope_of(text: Any) -> tuple[float, ...]:
    """How far each pair of a head's dimensions turns a position; empty where that is not fixed."""
    given = getattr(text, "rope_parameters", None) or {}
    kind = given.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn") or "rope_theta" not in given:
        return ()
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](text, "cpu")
        return tuple(frequencies.tolist())
    size = getattr(_layer(text), "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = int(size * given.get("partial_rotary_factor", 1.0))
    return tuple(float(given["rope_theta"]) ** (-at / size) for at in range(0, size, 2))


def vision_info(config: Any) -> VisionInfo | None:
    """The vision tower's numbers; None where the family has no plain one."""
    tower = getattr(config, "vision_config", None)
    layers = getattr(tower, "num_hidden_layers", None) or getattr(tower, "depth", None)
    heads = getattr(tower, "num_attention_heads", None) or getattr(tower, "num_heads", None)
    if not layers or not heads:
        return UNLIKE if "vision" in family_of(config).lacks else None
    feature = getattr(config, "vision_feature_layer", -1)
    # CLIP's and InternVL's towers put a CLS token first, Llama 4's last; others have none.
    kind = getattr(tower, "model_type", "")
    has_cls = kind in ("clip_vision_model", "internvl_vision")
    places = 0
    if kind in SQUARE:
        sides = (_sides(getattr(tower, name)) for name in ("image_size", "patch_size"))
        (height, width), (rows, columns) = sides
        places = height // rows * (width // columns) + has_cls
    read = feature if isinstance(feature, int) else -1
    last = kind == "llama4_vision_model"
    return VisionInfo(layers, heads, has_cls, read, places, cls_last=last)


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """End-of-sequence ids: the generation config's, else the tokenizer's."""
    eos = generation_config.eos_token_id
    eos = tokenizer.eos_token_id if eos is None else eos
    return list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
