"""What the tiny families share: how a prompt looks, the byte-level tokenizer, common numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LAYERS = 6
BASIC = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD, EOS, BOS = 0, 1, 2


@dataclass(frozen=True)
class Family:
    """One row of the table: how to build a family and how its prompts look.

    `placeholder` is one image in a prompt and `newline` what the template writes after it; `user`,
    `turn`, `reply` and `end` open and close the user's and the model's turns; `stop` are end tokens
    beside <eos>; `chat` is whether the processor keeps a chat template; `several` is whether a
    prompt may have more than one image; `spread` is the standard deviation of embeddings;
    `recurrent` are layers without attention.
    """

    parts: Callable[[], tuple[Any, Any]]
    placeholder: str
    user: str
    turn: str
    reply: str
    end: str
    newline: str = "\n"
    stop: tuple[str, ...] = ()
    chat: bool = True
    several: bool = True
    spread: float = 0.5
    recurrent: tuple[int, ...] = ()
    # vLLM looks the tower up under the name released checkpoints use
    rename: tuple[tuple[str, str], ...] = ()
    # Weights that released checkpoints hold the other way round; transformers reads both.
    transposed: tuple[str, ...] = ()

    def prompt(self, text: str, images: int = 1) -> str:
        """The prompt the chat template renders for one user turn with pictures first."""
        return f"{self.user}{self.image * images}{text}{self.turn}{self.reply}"

    def blind(self, prompt: str) -> str:
        """A rendered prompt without its images (each placeholder and the newline after it)."""
        return prompt.replace(self.image, "")

    @property
    def image(self) -> str:
        return self.placeholder + self.newline

    @property
    def template(self) -> str:
        """Chat template: pictures first, any number, several turns, words as string or parts."""
        words = (
            "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
            "{% for c in m['content'] if c['type'] == 'image' %}{{ IMAGE }}{% endfor %}"
            "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
            "{% endif %}"
        )
        body = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ REPLY + GAP }}"
            + words
            + "{{ END }}{% else %}{% if m['role'] == 'user' %}{{ USER }}{% endif %}"
            + words
            + "{{ TURN }}{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}{{ REPLY }}{% endif %}"
        )
        names = {
            "IMAGE": self.image,
            "USER": self.user,
            "TURN": self.turn,
            "REPLY": self.reply,
            "GAP": " " if self.reply.endswith(":") else "",
            "END": self.end,
        }
        return "".join(f"{{% set {k} = {v!r} %}}" for k, v in names.items()) + body


def tokenizer(
    special: Sequence[str], named: dict[str, str] | None = None, *, eos: str, bos_first: bool
) -> Any:
    """A byte-level tokenizer: the basic four, the family's special tokens, then the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*BASIC, *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos_first:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens=named or {},
    )
    rest = [s for s in special if s not in (named or {}).values()]
    made.add_special_tokens({"extra_special_tokens": rest}, replace_extra_special_tokens=False)
    return made


def text_config(vocabulary: int, **more: Any) -> dict[str, Any]:
    """Numbers of the language model, common to all families."""
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1024,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        **more,
    }


def llama(vocabulary: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**text_config(vocabulary))


def qwen2(vocabulary: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**text_config(vocabulary))


def clip() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        projection_dim=64,
    )


def siglip() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        vision_use_head=False,
    )
