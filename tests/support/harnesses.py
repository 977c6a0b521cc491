"""Stand-ins for the three harnesses: what our adapters import of them, and no more.

Made from lmms-eval 0.7.3, inspect_ai 0.3.285 and VLMEvalKit e8e78f0 (its `run.py`, `vlm/base.py`).
A newer release may differ: `tests/adapters/try_*.sh` run the real ones.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


class CacheHook:
    def __init__(self) -> None:
        self.kept: list[tuple] = []

    def add_partial(self, kind: str, request: Any, answer: str) -> None:
        self.kept.append((kind, request, answer))


class lmms:
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = CacheHook()

    @property
    def rank(self) -> int:
        return self._rank

    @staticmethod
    def _resolve_system_prompt(value: str) -> str:
        return value

    def _apply_system_prompt(self, messages: list, words: str) -> list:
        return [{"role": "system", "content": [{"type": "text", "text": words}]}, *messages]


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class ModelAPI:
    def __init__(self, model_name, base_url=None, api_key=None, api_key_vars=(), config=None):
        self.model_name, self.base_url, self.api_key = model_name, base_url, api_key


class GenerateConfig(SimpleNamespace):
    logprobs: Any = None
    top_logprobs: Any = None

    def model_dump(self, exclude_none: bool) -> dict:
        return {name: value for name, value in vars(self).items() if value is not None}


class Record(SimpleNamespace):
    """One of Inspect's records, whatever its fields."""


class BaseModel:
    """VLMEvalKit's: checks and normalises a question, then asks `generate_inner`."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def set_dump_image(self, function: Any) -> None:
        self.dump_image_func = function

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def generate(self, message: Any, dataset: str | None = None) -> str:
        given = [{"type": "text", "value": message}] if isinstance(message, str) else message
        for item in given:
            assert item["type"] in self.allowed_types, f"Invalid input type: {item['type']}"
        return self.generate_inner(given, dataset)


@dataclass
class Run:
    """VLMEvalKit's `run`: `main` makes the model that ``--model`` names, and asks it."""

    supported_VLM: dict = field(default_factory=dict)

    def main(self, model: str, questions: list, **options: Any) -> list[str]:
        made = self.supported_VLM[model](**options)
        made.set_dump_image(lambda line: line)
        return [made.generate(message=each, dataset="POPE") for each in questions]


MODULES = {
    "lmms_eval": {},
    "lmms_eval.api": {},
    "lmms_eval.api.model": {"lmms": lmms},
    "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
    "lmms_eval.models": {},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    "lmms_eval.models.model_utils": {},
    "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": lambda **told: LOGGED.append(told)},
    "loguru": {
        "logger": SimpleNamespace(info=lambda said: None, warning=lambda said: LOGGED.append(said))
    },
    "inspect_ai": {},
    "inspect_ai.model": {
        "ModelAPI": ModelAPI,
        "GenerateConfig": GenerateConfig,
        "modelapi": lambda name: lambda cls: cls,
        **dict.fromkeys(
            ("ChatCompletionChoice", "ChatMessageAssistant", "Logprob", "Logprobs", "ModelOutput",
             "ModelUsage", "TopLogprob"), Record
        ),
    },
    "vlmeval": {},
    "vlmeval.vlm": {},
    "vlmeval.vlm.base": {"BaseModel": BaseModel},
}  # fmt: skip
LOGGED: list[Any] = []


def modules() -> dict[str, ModuleType]:
    """The stand-ins by the names they are imported under."""
    made = {}
    for name, values in MODULES.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(values)
    return made


if __name__ == "__main__":  # what an environment with nothing but a harness would import
    sys.modules.update(modules())

    print(sorted({"torch", "transformers", "vllm", "openai"} & sys.modules.keys()))
