"""Makes artifacts: answers what a strategy's `calibrate` asks of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halludecode.calibration.builtin_prompts import built_in
from halludecode.calibration.store import ArtifactStore
from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.artifact import PIN, Artifact, shaping
from halludecode.core.calibration import Calibration
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.core.model_info import ModelInfo
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt, digest
from halludecode.core.registry import STRATEGIES
from halludecode.core.strategy import Strategy
from halludecode.engines.api import Output, Request, Sampling
from halludecode.engines.hf.activations import ActivationCollector
from halludecode.engines.inputs.chat import to_prompt
from halludecode.models.families import check_family

Samples = Sequence[tuple[Request, str | None]]  # with the right answer where it is known
WORDS = ("yes", "no")
LIKELIEST = 1000  # tokens whose probabilities are read; the rest counts as one


class Host(Protocol):
    """What making an artifact asks of an engine."""

    @property
    def name(self) -> str:
        """The engine's, for messages."""
        ...

    @property
    def model(self) -> Any:
        """Has the model's ``config``."""
        ...

    @property
    def net(self) -> Any:
        """Has ``model_info()`` and ``layout``."""
        ...

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        ...

    @property
    def provides(self) -> frozenset[str]:
        """Needs that are served."""
        ...

    def _guard(self) -> AbstractContextManager[Any]:
        """Held while the model is looked at."""
        ...

    def generate(
        self, requests: Sequence[Request], strategy: Plan, sampling: Sampling, **more: Any
    ) -> list[Output]:
        """Answers under a plan that may hold an artifact on trial."""
        ...


class Calibrator:
    """The artifacts of one loaded model: those kept in a folder, and the making of new ones.

    Args:
        collector: The model's activations.
        folder: Where artifacts are kept, see `ArtifactStore`.
    """

    def __init__(self, collector: ActivationCollector, folder: str | Path | None) -> None:
        self.collector, self.store = collector, ArtifactStore(folder)
        self._known: dict[str, Artifact] = {}

    def artifact(self, engine: Host, part: Strategy) -> Artifact | None:
        """The part's artifact: a kept one; optional ones are else made from built-in prompts."""
        if part.artifact is None:
            return None
        key = f"{part.name}|{shaping(part)}|{getattr(part, PIN, None)}"
        if key not in self._known:
            found = self.store.find(part, engine.digest)
            if found is None and part.artifact == "optional":
                found = self._make(engine, part, None, "", 0, progress=False)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def pinned(self, engine: Host, part: Strategy) -> Strategy:
        """A part that would take the artifact that fits, with that one named."""
        if getattr(part, PIN, "") is not None or (found := self.artifact(engine, part)) is None:
            return part
        return replace(part, **{PIN: found.name})

    def make(
        self,
        engine: Host,
        spec: hd_spec.Spec,
        samples: Samples | None = None,
        *,
        source: str = "",
        seed: int = 0,
        progress: bool = False,
    ) -> Artifact:
        """Make and keep an artifact; see `HFEngine.calibrate`.

        Args:
            engine: The loaded model.
            spec: One strategy.
            samples: Requests with their answers; None is the built-in prompts.
            source: Where the samples are from, for the record.
            seed: Of trained artifacts.
            progress: Show a bar on standard error.
        """
        parts = hd_spec.parse(spec)
        if len(parts) != 1:
            raise InvalidParameter("calibrate takes one strategy at a time.")
        if not parts[0].declares("calibrate"):
            able = ", ".join(cls.name for cls in STRATEGIES if cls.declares("calibrate"))
            raise InvalidParameter(f"{parts[0].name} has nothing to calibrate; these have: {able}.")
        if samples is not None and not samples:
            raise InvalidParameter("No samples to calibrate on: give at least one request.")
        made = self._make(engine, parts[0], samples, source, seed, progress=progress)
        self.store.save(made)
        self._known.clear()
        return made

    def _collect(self, request: ActivationRequest) -> Activations:
        """Not remembered: the residuals of many whole prompts would fill the memory."""
        return ActivationCollector(
            self.collector.net, self.collector.maker, self.collector.prefixes
        ).collect(request)

    def _make(
        self,
        engine: Host,
        part: Strategy,
        samples: Samples | None,
        source: str,
        seed: int,
        *,
        progress: bool,
    ) -> Artifact:
        if samples is not None:
            return self._made(engine, part, list(samples), "samples", source, seed, progress)
        given, kind = built_in(), "built-in prompts"
        try:
            return self._made(engine, part, given, kind, source, seed, progress)
        except InvalidRequest:  # a host that cuts our made pictures otherwise than the processor
            given = [pair for pair in given if not pair[0].images]
            return self._made(engine, part, given, f"{kind}, no picture", source, seed, progress)

    def _made(
        self,
        engine: Host,
        part: Strategy,
        given: Sequence[tuple[Request, str | None]],
        kind: str,
        source: str,
        seed: int,
        progress: bool,
    ) -> Artifact:
        prompts = [to_prompt(request, engine.net.layout.placeholder) for request, _ in given]
        answers = [answer for _, answer in given]
        model_info = engine.net.model_info()
        needs = compile_plan((part,), replace(model_info, artifact={}), engine=engine.name).needs
        check_family(engine.model.config, needs, part.name)
        cal = Calibration(
            prompts,
            self._collect,
            answers,
            _scorer(engine, model_info, given),
            partial(_soft_prompt, engine, self.collector, prompts, answers, seed, progress),
            partial(_track, part.name, progress),
        )
        with engine._guard():
            tensors = {name: value.cpu() for name, value in part.calibrate(cal, model_info).items()}
        told = f"{len(given)} {kind}" + (f" of {source}" if source else "")
        known = sum(answer is not None for answer in answers)
        content = digest(*(p.key for p in prompts), answers)[:12]
        told += f" ({known} with answers, digest {content}), seed {seed}"
        about = (part.name, shaping(part), engine.digest)
        return Artifact(*about, tensors, told, tuple(cal.notes))


def _scorer(
    engine: Host, model_info: ModelInfo, samples: Samples
) -> Callable[[Strategy, Mapping[str, Tensor]], float]:
    """`Calibration.score` on these samples."""
    labelled = [(request, answer) for request, answer in samples if answer in WORDS]
    requests = [request for request, _ in labelled or samples]
    keep = None if labelled else min(model_info.vocab_size, LIKELIEST)
    sampling = Sampling(max_new_tokens=1, logprobs=keep)

    def score(strategy: Strategy, artifact: Mapping[str, Tensor]) -> float:
        plan = compile_plan(
            (strategy,),
            model_info,
            engine.provides,
            engine=engine.name,
            artifacts={hd_spec.format((strategy,)): Artifact(strategy.name, {}, "", artifact)},
        )
        outputs = engine.generate(requests, plan, sampling, score_words=WORDS)
        if not labelled:
            return -sum(map(_entropy, outputs)) / len(outputs)
        said = ["yes" if o.scores["yes"] > o.scores["no"] else "no" for o in outputs]
        return sum(s == a for s, (_, a) in zip(said, labelled, strict=True)) / len(labelled)

    return score


def _entropy(output: Output) -> float:
    """Nats of the first token's distribution; all but the likeliest tokens count as one."""
    top = (output.logprobs or ())[0].top
    log_p = torch.tensor(list(top.values()), dtype=torch.float64)
    rest = (1 - log_p.exp().sum()).clamp(min=0)
    return float(-torch.xlogy(log_p.exp(), log_p.exp()).sum() - torch.xlogy(rest, rest))


def _soft_prompt(
    engine: Host,
    collector: ActivationCollector,
    prompts: Sequence[Prompt],
    answers: Sequence[str | None],
    seed: int,
    progress: bool,
) -> Mapping[str, Tensor]:
    from halludecode.calibration.soft_prompt import train

    pairs = [
        (prompt, answer.capitalize() if answer in WORDS else answer)
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer is not None and prompt.pictures
    ]
    options = {"seed": seed, "at_once": engine.batch_size, "progress": progress}
    return train(engine.net, collector.maker, pairs, **options)


def _track(name: str, progress: bool, things: Sequence[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(things, desc=name, disable=not progress, dynamic_ncols=True)
