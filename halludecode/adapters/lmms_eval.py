"""Our strategies inside lmms-eval (0.7.3): ``lmms_eval --model halludecode --model_args ...``.

lmms-eval finds `manifest` through the entry-point group ``lmms_eval.models`` and makes a
`HalluDecode` of ``--model_args``, see README.md here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from halludecode.adapters.engine_options import open_engine, unquoted, whole_strategy
from halludecode.core.errors import HalluDecodeError, InvalidParameter, InvalidRequest
from halludecode.core.request import Request, Sampling

OPTION = "--model_args 'pretrained=...,strategy=\"{}\"'"
DEFAULT_TOKENS = 1024  # where a task says nothing
AT_A_TIME = 64  # requests handed to engines that batch by themselves
NUMBERS = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "seed")
DRAWN = ("temperature", "top_p", "top_k")
STOPS = ("until", "stop_sequences")
# lmms-eval gives it to every task that states none; like its own chat models we write on.
NO_STOP = ["\n\n"]
# Of other models' processors and of lmms-eval itself; they say nothing of how tokens are drawn.
ELSEWHERE = frozenset({"image_aspect_ratio", "use_cache", "skip_special_tokens", "visual_cot"})


def manifest() -> Any:
    """What lmms-eval registers; it imports the class only when that is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = f"{HalluDecode.__module__}.{HalluDecode.__name__}"
    return ModelManifest(model_id="halludecode", chat_class_path=path)


class HalluDecode(lmms):
    """A model under a strategy, on an engine of ours or behind `halludecode serve`.

    Args:
        pretrained: Hub id, folder, "testbed", or the URL of a running server.
        strategy: What acts; in quotes where it has commas.
        engine: "hf", "vllm" or "server"; a URL is a server's, else "hf".
        batch_size: Requests of a forward on "hf"; the others batch by themselves.
        max_batch_size: lmms-eval's own; not read.
        device: Of "hf".
        system_prompt: Words, or a file of words, before every question.
        **options: What `halludecode.load` takes for the engine.

    Raises:
        HalluDecodeError: The strategy or the model cannot be used; the sentence says why.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        strategy: str = "greedy",
        engine: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        whole = whole_strategy(strategy, options, OPTION)
        self.system_prompt = self._resolve_system_prompt(unquoted(system_prompt or ""))
        if not str(batch_size or 1).isdigit():
            raise InvalidParameter(f"batch_size={batch_size}: give a number; none is found out.")
        given = {name: unquoted(v) if isinstance(v, str) else v for name, v in options.items()}
        kind = engine or ("server" if unquoted(pretrained).startswith("http") else "hf")
        shared = self._shared_among_processes(kind)
        if kind == "hf":
            given["batch_size"] = int(batch_size or 1)
            if device or shared:
                given["device"] = shared or device
        self.engine = open_engine(pretrained, kind, given)
        self.plan = self.engine.plan(whole)
        self.batch_size = given.get("batch_size") or max(AT_A_TIME, int(batch_size or 1))
        self._unread: set[str] = set()
        logger.info(f"{self.engine.model_id} on engine {kind}, strategy {self.plan.canonical}")

    def _shared_among_processes(self, kind: str) -> str | None:
        """This process's device under `accelerate launch`, which splits the questions."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return None
        if kind == "vllm":
            raise InvalidParameter(
                "engine=vllm runs in one process; give it data_parallel_size=N in --model_args "
                "in place of accelerate's processes."
            )
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        return str(self.device)

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers in the order of the requests.

        Raises:
            HalluDecodeError: One cannot be answered; the sentence names its task and document.
        """
        from tqdm import tqdm

        begun, outputs = time.perf_counter(), dict[int, Any]()
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for places in self._batches(requests):
                batch = [requests[place] for place in places]
                answers = self.engine.generate_each(
                    [self._request(each) for each in batch],
                    self.plan,
                    self._sampling(batch[0].args[2]),
                )
                for place, request, answer in zip(places, batch, answers, strict=True):
                    if isinstance(answer, HalluDecodeError):
                        raise type(answer)(f"{_where(request)}: {answer}")
                    context, _, told, *_ = request.args
                    self.cache_hook.add_partial("generate_until", (context, told), answer.text)
                    outputs[place] = answer
                bar.update(len(places))
        ordered = [outputs[place] for place in range(len(requests))]
        self._tell(ordered, time.perf_counter() - begun)
        return [
            GenerationResult(out.text, TokenCounts(output_tokens=len(out.token_ids)))
            for out in ordered
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise InvalidRequest("Tasks of several rounds are not served by --model halludecode.")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused."""
        raise InvalidRequest(
            "Tasks of type loglikelihood are not served by --model halludecode: a strategy says "
            "how an answer is written, not how likely a given one is."
        )

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Places of requests that are drawn alike, as many as are handed over at a time."""
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[2].items())), []).append(place)
        for places in alike.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]

    def _request(self, request: Any) -> Request:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        told = [
            {"role": each["role"], "content": _parts(each["content"], _where(request))}
            for each in messages
        ]
        return Request(told)

    def _sampling(self, told: Mapping[str, Any]) -> Sampling:
        """How a task's ``generation_kwargs`` draw; what greedy decoding does not read is let go."""
        if told.get("num_beams") not in (None, 1):
            raise InvalidParameter(
                f"num_beams={told['num_beams']}: a strategy writes one answer token by token; set "
                "--gen_kwargs num_beams=1."
            )
        numbers = {name: told[name] for name in NUMBERS if told.get(name) is not None}
        if told.get("do_sample") is not False and told.get("temperature"):
            numbers |= {name: told[name] for name in DRAWN if told.get(name) is not None}
        known = {*NUMBERS, *DRAWN, *STOPS, *ELSEWHERE, "num_beams", "do_sample"}
        for name in told.keys() - known - self._unread:
            logger.warning(f"generation_kwargs: {name}={told[name]!r} is not read.")
            self._unread.add(name)
        stops = [told[name] for name in STOPS if told.get(name) not in (None, NO_STOP)]
        words = [word for stop in stops for word in ([stop] if isinstance(stop, str) else stop)]
        numbers = {"max_new_tokens": DEFAULT_TOKENS, **numbers}
        return Sampling(**numbers, stop=[word for word in words if word])

    def _tell(self, outputs: Sequence[Any], seconds: float) -> None:
        """What the strategy did, into the log and beside the results."""
        from lmms_eval.models.model_utils.gen_metrics import log_metrics

        for warning in dict.fromkeys(word for out in outputs for word in out.warnings):
            logger.warning(warning)
        tokens = sum(len(out.token_ids) for out in outputs)
        effects = [out.effect for out in outputs if out.effect is not None]
        changed = {"changed_tokens": sum(effects)} if effects else {}
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={"strategy": self.plan.canonical, **changed},
        )


def _where(request: Any) -> str:
    return f"{request.args[4]}, document {request.args[3]}"


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    """Content parts as `Request` has them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part["type"]
        if kind not in ("text", "image"):
            raise InvalidRequest(f"{where}: {kind} is not served, text and images are.")
        parts.append(
            {"type": "text", "text": part["text"]}
            if kind == "text"
            else {"type": "image", "image": part["url"]}
        )
    return parts
