"""From a `Prompt` to token ids and pixels with the model's own processor, a picture at a time.

A picture is preprocessed once and its placeholder expansion remembered, so hundreds of questions
about it cost a tokenizer call each. A test holds the assembled ids equal to the processor's own
output.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jinja2
from torch import Tensor

from halludecode.core.errors import InvalidRequest
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.models.family import ModelFamily
from halludecode.models.image_layout import Span

V = TypeVar("V")
CACHED = 256e6  # bytes of preprocessed pictures that are remembered

# What a processor returns for the words, not for the pictures.
WORDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")


class LRU(Generic[V]):
    """A bounded mapping that forgets what was used longest ago; ``weigh`` gives an entry's size."""

    def __init__(self, limit: float, weigh: Callable[[V], float] = lambda value: 1) -> None:
        self._limit, self._weigh, self._size = limit, weigh, 0.0
        self._entries: OrderedDict[str, V] = OrderedDict()

    def get(self, key: str) -> V | None:
        """The entry, marked as used."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, value: V) -> None:
        """Keep an entry; drops the oldest ones above the limit."""
        if key in self._entries:
            self._size -= self._weigh(self._entries.pop(key))
        self._entries[key] = value
        self._size += self._weigh(value)
        while self._size > self._limit and len(self._entries) > 1:
            self._size -= self._weigh(self._entries.popitem(last=False)[1])

    @property
    def size(self) -> float:
        """What all entries weigh."""
        return self._size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._size = 0.0


@dataclass(frozen=True)
class ProcessedImage:
    """One picture as the processor returns it.

    Args:
        pixels: ``pixel_values`` and whatever else the model needs of one picture, views along the
            first axis.
        expansion: Token ids that replace the image token in the prompt.
        count: Image tokens in the expansion.
        span: Where its overview's tokens form a raster.
        several: Whether it is one view because it stands beside others, see `ModelFamily.apart`.
    """

    pixels: Mapping[str, Tensor]
    expansion: tuple[int, ...]
    count: int
    span: Span
    several: bool = False

    @property
    def size(self) -> float:
        """Bytes of its tensors."""
        return sum(value.numel() * value.element_size() for value in self.pixels.values())


class InputProcessor:
    """Renders prompts and preprocesses pictures for one model.

    Args:
        processor: The model's own processor.
        config: The model's config.
        family: What sets its family apart.
    """

    def __init__(self, processor: Any, config: Any, family: ModelFamily) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token = config.image_token_id
        eos = self.tokenizer.eos_token_id
        self.pad_token = next((i for i in (self.tokenizer.pad_token_id, eos) if i is not None), 0)
        self.strip = family.strip
        self._config = config
        self._family = family
        self._pictures: LRU[ProcessedImage] = LRU(CACHED, lambda image: image.size)

    def render(self, prompt: Prompt) -> str:
        """Text in the model's chat template, one placeholder per picture.

        Raises:
            InvalidRequest: The template refuses the chat; the sentence has its reason.
        """
        if prompt.raw or not self.processor.chat_template:
            return self._render_plain(prompt)
        messages = [_message(turn) for turn in prompt.turns]
        told = json.loads(prompt.template) if prompt.template else {}
        try:
            return self.processor.apply_chat_template(
                messages,
                add_generation_prompt=prompt.opened and not prompt.open_ended,
                continue_final_message=prompt.open_ended,
                tokenize=False,
                processor_kwargs={"padding": False},  # without any, SmolVLM's warns at every call
                **{name: value for name, value in told.items() if self._reads(name)},
            )
        except (jinja2.TemplateError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise InvalidRequest(
                f"The model's chat template does not take this chat: {error}"
            ) from error

    def _reads(self, name: str) -> bool:
        """Whether the chat template has a word of that name; transformers warns of others."""
        template = self.processor.chat_template
        text = template if isinstance(template, str) else " ".join(template.values())
        return re.search(rf"\b{re.escape(name)}\b", text) is not None

    def encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """Rendered text and its token ids, one image token per picture, not yet expanded.

        Raises:
            InvalidRequest: The text holds more or fewer image tokens than there are pictures.
        """
        text, given = self.render(prompt), len(prompt.pictures)
        if self._family.leading and given > 1:
            raise InvalidRequest(
                f"{given} images were given, but family {self._config.model_type!r} reads one; ask "
                "about each by itself."
            )
        ids = self.short(text, given)
        count = ids.count(self.image_token)
        if count != given:
            raise InvalidRequest(
                f"The prompt holds {count} image placeholder(s) but {given} image(s) were given; "
                "make the counts equal and keep the model's placeholder out of the question's "
                "words."
            )
        return text, ids

    def expand(self, ids: list[int], pictures: list[ProcessedImage]) -> list[int]:
        """Every image token replaced by its picture's expansion, in order."""
        rest, out = enumerate(pictures), list[int]()
        for token in ids:
            out += self._numbered(*next(rest)) if token == self.image_token else (token,)
        return out

    def _numbered(self, place: int, image: ProcessedImage) -> Sequence[int]:
        """A picture's expansion, which was made where it is the first."""
        if not self._family.number or not place:
            return image.expansion
        first, own = (self._words(self._family.number.format(n)) for n in (0, place))
        written = list(image.expansion)
        return own + written[len(first) :] if written[: len(first)] == first else written

    def _words(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def picture(self, picture: Picture, *, several: bool = False) -> ProcessedImage:
        """Preprocess one picture, or remember having done so.

        Args:
            picture: The picture.
            several: Whether its prompt has others beside it.
        """
        several = several and self._family.apart
        key = f"{picture.key}|several" if several else picture.key
        processed = self._pictures.get(key)
        if processed is None:
            processed = self._preprocess(picture, several=several)
            self._pictures.put(key, processed)
        return processed

    def encoder_words(self, text: str) -> Mapping[str, Tensor]:
        """What the picture encoder reads of a prompt's words; empty for most families.

        Raises:
            InvalidRequest: More words than it can read.
        """
        if not self._family.encoder_words:
            return {}
        encoded = self.processor(text=[text], return_tensors="pt")
        words = {name: encoded[name] for name in self._family.encoder_words}
        most = self._config.qformer_config.max_position_embeddings
        length = max(value.shape[-1] for value in words.values())
        if length > most:
            raise InvalidRequest(
                f"The prompt's words are {length} tokens to the Q-Former, which reads at most "
                f"{most}; shorten the prompt."
            )
        return words

    def word_ids(self, word: str) -> list[int]:
        """First token of every usual spelling of a word (case, leading space), for scores."""
        forms = [form for base in (word, word.capitalize()) for form in (base, " " + base)]
        encoded = [self.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        single = {ids[0] for ids in encoded if len(ids) == 1}
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return sorted((single or {ids[0] for ids in encoded if ids}) - {unknown})

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them, with its own marks of where words begin."""
        return tuple(map(str, self.tokenizer.convert_ids_to_tokens(list(ids))))

    def scored_words(self, words: Sequence[str]) -> dict[str, list[int]]:
        """`word_ids` of words to be scored; one that the vocabulary lacks has no score.

        A token with which several of them begin, such as a space by itself, tells none from another
        and counts for none; words that differ by case alone share theirs.
        """
        begun = {word: self.word_ids(word) for word in words}
        meant = {(word.casefold(), i) for word, ids in begun.items() for i in ids}
        counts = Counter(i for _, i in meant)
        told = {word: [i for i in ids if counts[i] == 1] for word, ids in begun.items()}
        return {word: ids for word, ids in told.items() if ids}

    def _preprocess(self, picture: Picture, *, several: bool) -> ProcessedImage:
        family, times = self._family, 1 + several  # several: as the first of itself twice
        placeholder = "" if family.leading else family.placeholder * times
        short = self.short(placeholder, times)
        images = [[picture.image] * times] if several else [picture.image]
        with _told_of(picture):
            inputs = self.processor(text=[placeholder], images=images, return_tensors="pt")
        long = inputs["input_ids"][0].tolist()
        before = short.index(self.image_token)
        stop = len(long) - (len(short) - before - 1)
        if several:
            stop = before + long.count(self.image_token) // times
        expansion = tuple(long[before:stop])
        count = expansion.count(self.image_token)
        words = (*WORDS, *family.encoder_words)
        tensors = {k: v for k, v in inputs.items() if k not in words}
        pixels = _views({k: v[:1] for k, v in tensors.items()} if several else tensors)
        with _told_of(picture):
            if count < family.least:
                raise ValueError(
                    f"it makes {count} image token(s), and the model's code takes {family.least} "
                    "or more; give a larger one."
                )
            span = family.span(pixels, count, self._config)
        return ProcessedImage(pixels, expansion, count, span, several)

    def short(self, text: str, pictures: int) -> list[int]:
        """Token ids of a rendered prompt, one image token per picture."""
        family = self._family
        first = [self.image_token] * pictures if family.leading else []
        framed = text.replace(family.placeholder, family.frame) if family.frame else text
        return first + self.bare(framed)

    def bare(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, its placeholders as a chat template writes them."""
        return self._tokenize(self.closed(text))

    def closed(self, text: str) -> str:
        """A rendered prompt with what the processor writes before its words and after them."""
        if not self._family.closing:
            return text
        pictures, spot, words = text.rpartition(self._family.placeholder)
        return f"{pictures}{spot}{self.tokenizer.bos_token}{words}{self._family.closing}"

    def _tokenize(self, text: str) -> list[int]:
        bos = getattr(self.tokenizer, "bos_token", None)
        # A template that writes it must not get it twice.
        special = self._family.special and not (bos and text.startswith(bos))
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def _render_plain(self, prompt: Prompt) -> str:
        spot = "" if self._family.leading else self._family.placeholder
        if prompt.raw:
            return "".join(
                spot if isinstance(p, Picture) else p for t in prompt.turns for p in t.parts
            )
        begun = prompt.open_ended and len(prompt.turns) == 2
        if len(prompt.turns) > 1 + begun or prompt.open_ended > begun:
            raise InvalidRequest(
                "This checkpoint has no chat template, so several turns cannot be rendered; "
                "give one question, or text that is already in the model's format."
            )
        words = "".join(p for p in prompt.turns[0].parts if isinstance(p, str))
        gap = "\n" if "{images}\n" in self._family.turn else ""
        images = gap.join(spot for _ in prompt.pictures)
        text = self._family.turn.format(images=images, text=words)
        text = text if images else text.replace(": \n", ": ").replace("user\n\n", "user\n")
        gap = "" if text.endswith("\n") else " "
        return text + gap + "".join(map(str, prompt.turns[1].parts)) if begun else text


@contextmanager
def _told_of(picture: Picture) -> Iterator[None]:
    """What a processor or a layout cannot take ends in one sentence that says which picture."""
    try:
        yield
    except (ValueError, ZeroDivisionError) as error:
        width, height = picture.image.size
        raise InvalidRequest(
            f"An image of {width} x {height} pixels cannot be preprocessed for this model: {error}"
        ) from None


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates read it; what a tool said is one text, as most of them want it."""
    content: Any = [
        {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
        for part in turn.parts
    ]
    if turn.role == "tool" and all(isinstance(part, str) for part in turn.parts):
        content = "\n".join(map(str, turn.parts))
    return {"role": turn.role, "content": content, **(json.loads(turn.more) if turn.more else {})}


def _views(pixels: dict[str, Tensor]) -> dict[str, Tensor]:
    """One picture's inputs with its views along the first axis and ``pixel_values`` in float32."""
    if pixels["pixel_values"].dim() == 5:  # [1, views, 3, H, W]
        pixels = {k: v.flatten(0, 1) if k.startswith("pixel_") else v for k, v in pixels.items()}
    return pixels | {"pixel_values": pixels["pixel_values"].float()}
