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
SHAPES = 1024  # of pictures' tensors, whose items are remembered


class PictureItems:
    """Makes vLLM's items of pictures.

    Our rows have what the model's own processor made of a picture, and vLLM's processor would make
    it once more. It does so for the first picture whose tensors have a certain shape; where what it
    made are our tensors to the bit, later ones of these shapes get ours in the same item. How many
    tokens vLLM expects of a picture is asked of its processor for every one.

    Args:
        loaded: The engine.
        inputs: The processor that rows were made with.
    """

    def __init__(self, loaded: Loaded, inputs: InputProcessor) -> None:
        from vllm.multimodal import MULTIMODAL_REGISTRY

        self._loaded, self._inputs = loaded, inputs
        self._processor = MULTIMODAL_REGISTRY.create_processor(loaded.vllm_config.model_config)
        self._items: LRU[Any] = LRU(CACHED, _bytes)
        self._by_shape: LRU[Any] = LRU(SHAPES)  # items without data, where vLLM's are ours

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
        made = image.processed
        if made.several:  # vLLM cuts it into views all the same
            return _with_pixels(self._preprocess(image)[0], made.pixels["pixel_values"])
        shapes = str({name: [*tensor.shape] for name, tensor in made.pixels.items()})
        fields = self._by_shape.get(shapes)
        if fields is not None:
            item = _filled(fields, made.pixels)
            have = self._count(image, item)
        else:
            item, have = self._preprocess(image)
            if _ours(item, made.pixels) and have == self._count(image, item):
                self._by_shape.put(shapes, _emptied(item))
        if have != made.count:
            width, height = image.picture.image.size
            raise InvalidRequest(
                f"vLLM makes {have} tokens of a {width} x {height} picture, where this model's own "
                f"processor makes {made.count}; scale the picture to another shape, or use "
                "engine='hf'."
            )
        return item

    def _preprocess(self, image: ImageInput) -> tuple[Any, int]:
        """What vLLM's own processor makes of a picture, and of how many tokens."""
        from vllm.multimodal.processing import ProcessorInputs, TimingContext

        prompt = self._inputs.bare(self._loaded.layout.placeholder)
        made = self._processor.apply(
            ProcessorInputs(prompt=prompt, mm_data_items=_parsed(image)),
            TimingContext(enabled=False),
        )
        return made["mm_kwargs"]["image"][0], made["mm_placeholders"]["image"][0].get_num_embeds()

    def _count(self, image: ImageInput, item: Any) -> int:
        """Tokens that vLLM's processor would write for an item; -1 where it writes none itself."""
        from vllm.multimodal.inputs import MultiModalKwargsItems

        items = MultiModalKwargsItems({"image": [item]})
        updates = self._processor._get_prompt_updates(_parsed(image), {}, items)
        if len(updates) != 1:
            return -1
        content = updates[0].resolve(0).content
        marked = content.is_embed
        return len(content.full) if marked is None else int(marked(content.full).sum())


def _parsed(image: ImageInput) -> Any:
    from vllm.multimodal.parse import MultiModalDataParser

    return MultiModalDataParser().parse_mm_data({"image": [image.picture.image]})


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
