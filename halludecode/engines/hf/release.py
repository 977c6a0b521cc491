"""What differs between the releases of transformers that we run on."""

from __future__ import annotations

import inspect

import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM

from halludecode.core.errors import InvalidModel

# Where a family's own code is at fault, whatever it is given: release -> family -> what it does and
# the release to take.
BROKEN = {
    "5.18.0": {"minicpmv4_6": ("reads all views of a picture as if of one shape", ">=5.19,<5.25")},
    "5.24.0": {"llama4": ("ends in an error of its own", ">=5.18,<5.24")},
}


def check_release(model_class: type, kind: str) -> None:
    """Refuse a release that cannot run a model as it is.

    Releases before 5.18 take what they do not know and answer without the picture.

    Raises:
        InvalidModel: The sentence says which release to install.
    """
    fault, fit = BROKEN.get(transformers.__version__, {}).get(kind, ("", ""))
    if fault:
        raise InvalidModel(
            f"The forward of {kind!r} {fault} in transformers {transformers.__version__}; install "
            f"another release: pip install 'transformers{fit}'."
        )
    if "mm_encoder_outputs" not in inspect.signature(model_class.forward).parameters:
        raise InvalidModel(
            f"{model_class.__name__} of transformers {transformers.__version__} does not take "
            "pictures that are already encoded (`mm_encoder_outputs`), so it would not see them; "
            "install a release that does: pip install 'transformers>=5.18,<5.25'."
        )


def last_kept(count: int) -> Tensor:
    """``logits_to_keep`` for logits of the last tokens where layers' work on the others is wanted.

    From 5.23.0 on the layers of Gemma 4 that hold no KV of their own leave out tokens whose logits
    are not asked for, if these are given as a number; as positions they are all computed.
    """
    return torch.arange(-count, 0)


def _cache_name() -> str:
    """What models call the argument and the output that hold their KV.

    All of a release call it the same; InstructBLIP takes it without a word of it in its signature.
    """
    taken = inspect.signature(LlamaForCausalLM.forward).parameters
    for name in ("cache", "past_key_values"):  # since transformers 5.24, and before
        if name in taken:
            return name
    raise InvalidModel(
        f"transformers {transformers.__version__} has neither `cache` nor `past_key_values` among "
        "the arguments of a model's forward; install a release this version of halludecode knows "
        "(pip install 'transformers>=5.18,<5.25')."
    )


CACHE = _cache_name()
