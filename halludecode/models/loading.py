"""Loading a model and its processor through transformers, with one-sentence errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from halludecode.core.errors import InvalidModel, InvalidRequest
from halludecode.core.prompt import digest
from halludecode.models.checkpoints import complete_processor, load_config
from halludecode.models.sources import model_source
from halludecode.testbed.assets import MODELS as TESTBED

BITS = ("load_in_4bit", "load_in_8bit")
OF_VLLM = frozenset(
    {
        *("max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs"),
        *("max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size"),
        *("data_parallel_size", "enforce_eager", "limit_mm_per_prompt", "enable_prefix_caching"),
        *("mm_processor_kwargs", "media_io_kwargs", "quantization", "swap_space"),
        *("kv_cache_dtype", "load_format", "tokenizer_mode", "hf_overrides", "block_size"),
    }
)


def load_model(
    model_id: str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **more: Any,
) -> tuple[Any, Any]:
    """A model in eval mode and its processor.

    Args:
        model_id: Hub id, local path, "testbed" or "testbed-planted".
        dtype: None is float32 on CPU and the checkpoint's own elsewhere.
        device: None is the first GPU if there is one, else the CPU.
        device_map: As in transformers; excludes ``device``.
        revision: Hub revision.
        trust_remote_code: Whether code of the repository may run.
        **more: Passed on to `from_pretrained` (quantization_config, ...).

    Raises:
        InvalidModel: Not found, not an image-text model, of no known family, or without a
            processor; a package is missing, or an option is not known.
        InvalidRequest: An option of another engine.
    """
    from transformers import AutoModelForImageTextToText

    _check_options(more)
    source = model_source(model_id)
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_config(model_id, source, **shared)  # a family unknown is told before weights come
    processor = load_processor(model_id, source, **shared)
    complete_processor(processor, config)
    where = _device(device)
    chosen = dtype or ("float32" if where == "cpu" and device_map is None else "auto")
    known = not isinstance(chosen, str) or isinstance(getattr(torch, chosen, None), torch.dtype)
    if not known and chosen != "auto":
        raise InvalidModel(f"dtype={chosen!r}: use auto, float32, bfloat16 or float16.")
    try:
        with _quiet(model_id in TESTBED):
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=chosen, device_map=device_map, **shared, **more
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of files, packages, options: transformers has all kinds
        raise InvalidModel(_why(model_id, "model", error)) from error
    if device_map is None and not getattr(model, "hf_quantizer", None):
        model = model.to(where)
    return model.eval(), processor


def inner_model(model: Any) -> Any:
    """The transformers model inside wrappers: torch.compile's, PEFT's, DataParallel's.

    Adapters whose layers stand in the model itself (LoRA and its kin) go on acting.

    Raises:
        InvalidModel: There is none, or what is around it would be lost.
    """
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from transformers import PreTrainedModel

    while not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        if "_orig_mod" in getattr(model, "_modules", {}):  # torch.compile's
            model = model._orig_mod
        elif isinstance(model, DataParallel | DistributedDataParallel):
            if len(model.device_ids or ()) > 1:
                raise InvalidModel(f"A {kind} over several devices copies the model; give .module.")
            model = model.module
        elif hasattr(model, "get_base_model"):  # PEFT's
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise InvalidModel(
                    f"This {kind} puts learned tokens before the prompt, which would be lost; give "
                    "a model without them, get_base_model()."
                )
            model = model.get_base_model()
        else:
            raise InvalidModel(
                f"An object of type {kind} is no transformers model; give the model inside it "
                "(of PEFT: model.get_base_model()), or a hub id or folder."
            )
    return model


@contextmanager
def _quiet(small: bool) -> Iterator[None]:
    """No loading bar for a model that loads in a blink, nor where nobody watches."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if small or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InvalidModel(f"device={name!r} cannot be used here ({first}); try cpu.") from None
    return name


def model_digest(model: Any) -> str:
    """Identity of the weights: digests of config and of a fixed sample of every tensor."""
    parts: list[object] = [re.sub(r'"_name_or_path".*', "", model.config.to_json_string())]
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().flatten()
        stride = max(1, flat.numel() // 64)
        sample = flat[::stride][:64].cpu()
        parts.append(name.replace("_orig_mod.", ""))  # of a part that torch.compile wrapped
        parts.append(
            sample.float().numpy().tobytes() if sample.is_floating_point() else sample.tolist()
        )
    return digest(*parts)


def load_processor(model_id: str, source: str, **shared: Any) -> Any:
    """The model's processor, with its tokenizer and image processor.

    Raises:
        InvalidModel: It cannot be loaded, or does not handle pictures.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **shared)
    except Exception as error:
        raise InvalidModel(_why(model_id, "processor", error)) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InvalidModel(
            f"{model_id}: no image processor beside the tokenizer; save the whole processor "
            "(processor.save_pretrained) next to the model."
        )
    return processor


def _check_options(given: Mapping[str, Any]) -> None:
    """Refuse options that transformers would take for the model's own and stumble over."""
    for name in given:
        if name in BITS:
            raise InvalidRequest(
                f"{name}= is no option of transformers any more; give quantization_config="
                f"transformers.BitsAndBytesConfig({name}=True), which needs bitsandbytes."
            )
        if name in OF_VLLM:
            raise InvalidRequest(
                f"{name}= is an option of engine='vllm', not of engine='hf'; leave it out, or load "
                "with engine='vllm'."
            )


def _cure(error: Exception) -> str:
    """What to do about an error of transformers that has a known cure; "" for others."""
    text = str(error)
    taken = re.search(r"unexpected keyword argument '(\w+)'", text)
    if taken:
        return f"Neither hd.load nor the model takes {taken[1]}=; leave it out."
    if re.search(r"flash.?att", text, re.I):
        return "Leave attn_implementation out (PyTorch's own is used), or install flash-attn."
    if "bitsandbytes" in text:
        return "Install bitsandbytes, and use a GPU, or leave the quantization out."
    return "Install the package that it names." if isinstance(error, ImportError) else ""


def _why(model_id: str, what: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = "Give a hub id, a folder saved with save_pretrained, or 'testbed'."
    if what == "processor":
        hint = "A vision-language model needs its processor files beside the weights. " + hint
    if what == "model":
        hint = "It must be an image-text-to-text model. " + hint
    return f"{model_id}: the {what} cannot be loaded ({first[:300]}). {_cure(error) or hint}"
