"""In the front end: vLLM's items of pictures, with the pixels a row has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from halludecode.core.errors import InvalidRequest, UnsupportedStrategy
from halludecode.engines.inputs.processor import CACHED, LRU, InputProcessor
from halludecode.engines.inputs.rows import ImageInput
from halludecode.engines.vllm.frontend.loading import Loaded

ROUNDING = 0.05  # of normalised pixels in bfloat16
SIZES = 1024  # sizes of pictures whose items are remembered


class PictureItems:
    """Makes vLLM's items of pictures.

    Our rows have what the model's own processor made of a picture, and vLLM's processor would make
    it once more. It does so for the first picture of every size; where what it made are our tensors
    to the bit, later ones of that size get ours in the same item.

    Args:
        loaded: The engine.
        inputs: The processor that rows were made with.
    """

    def __init__(self, loaded: Loaded, inputs: InputProcessor) -> None:
        from vllm.multimodal import MULTIMODAL_REGISTRY

        self._loaded, self._inputs = loaded, inputs
        self._processor = MULTIMODAL_REGISTRY.create_processor(loaded.vllm_config.model_config)
        self._items: LRU[Any] = LRU(CACHED, _bytes)
        self._by_size: LRU[Any] = LRU(SIZES)  # fields without data, where vLLM's are ours

    def item(self, image: ImageInput) -> Any:
        """VLLM's item of one picture with the row's own pixels in it.

        Raises:
            InvalidRequest: VLLM makes another number of tokens of it than the model's processor.
            UnsupportedStrategy: Its pixels are edited, and vLLM prepares them in another way.
        """
        key = image.unedited_key
        unedited = self._items.get(key)
        if unedited is None:
            unedited = self._unedited(image)
            self._items.put(key, unedited)
        if image.pixel_key == key:
            return unedited
        plain = image.processed.pixels["pixel_values"]
        if not _alike(unedited["pixel_values"].data, plain):
            raise UnsupportedStrategy(
                "vLLM prepares the pixels of this family in a way of its own, so they cannot be "
                "edited; use a strategy without 'pixels', or engine='hf'."
            )
        return _with_pixels(unedited, image.pixels["pixel_values"])

    def _unedited(self, image: ImageInput) -> Any:
        picture, made = image.picture.image, image.processed
        size = f"{picture.size} {picture.mode} {made.several}"
        fields = self._by_size.get(size)
        if fields is not None:
            return _filled(fields, made.pixels)
        item = self._preprocess(image)
        if not made.several and _ours(item, made.pixels):
            self._by_size.put(size, _emptied(item))
        return item

    def _preprocess(self, image: ImageInput) -> Any:
        from vllm.multimodal.parse import MultiModalDataParser
        from vllm.multimodal.processing import ProcessorInputs, TimingContext

        placeholder, picture = self._loaded.layout.placeholder, image.picture
        items = MultiModalDataParser().parse_mm_data({"image": [picture.image]})
        processed = self._processor.apply(
            ProcessorInputs(prompt=self._inputs.short(placeholder, 1), mm_data_items=items),
            TimingContext(enabled=False),
        )
        item = processed["mm_kwargs"]["image"][0]
        if image.processed.several:  # vLLM cuts it into views all the same
            return _with_pixels(item, image.processed.pixels["pixel_values"])
        have = processed["mm_placeholders"]["image"][0].get_num_embeds()
        want = image.processed.count
        if have != want:
            width, height = picture.image.size
            raise InvalidRequest(
                f"vLLM makes {have} tokens of a {width} x {height} picture, where this model's own "
                f"processor makes {want}; scale the picture to another shape, or use engine='hf'."
            )
        return item


def _ours(item: Any, pixels: Any) -> bool:
    """Whether every field of vLLM's item is the tensor of that name that our processor made."""
    return all(
        isinstance(field.data, Tensor)
        and name in pixels
        and pixels[name].numel() == field.data.numel()
        and torch.equal(_as(field.data, pixels[name]), field.data)
        for name, field in item.items()
    )


def _as(theirs: Tensor, ours: Tensor) -> Tensor:
    return ours.reshape(theirs.shape).to(theirs.dtype)


def _emptied(item: Any) -> Any:
    """An item whose tensors take no room, with their shapes and dtypes."""
    return _replaced(item, {name: field.data.to("meta") for name, field in item.items()})


def _filled(fields: Any, pixels: Any) -> Any:
    return _replaced(
        fields, {name: _as(field.data, pixels[name]) for name, field in fields.items()}
    )


def _with_pixels(item: Any, pixels: Tensor) -> Any:
    """VLLM's item with other pixels, of as many views as these have."""
    have = item["pixel_values"].data
    shape = [len(pixels), *have.shape[1:]] if pixels.dim() == have.dim() else have.shape
    return _replaced(item, {"pixel_values": pixels.reshape(shape).to(have.dtype)})


def _replaced(item: Any, tensors: dict[str, Tensor]) -> Any:
    """An item with other tensors in some of its fields."""
    made = copy.copy(item)
    made.data = dict(item.data)
    for name, tensor in tensors.items():
        made.data[name] = copy.copy(item[name])
        made.data[name].data = tensor
    return made


def _alike(theirs: Any, ours: Tensor) -> bool:
    """Whether vLLM's pixels of a picture are the processor's, but for rounding."""
    if not theirs.is_floating_point() or theirs.numel() != ours.numel():
        return False
    return bool((theirs.float().flatten() - ours.flatten()).abs().max() < ROUNDING)


def _bytes(item: Any) -> float:
    """Of an item's tensors."""
    tensors = (element.data for element in item.data.values())
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
