"""Makes artifacts: answers what a strategy's `calibrate` asks of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from halludecode.calibration.builtin_prompts import built_in
from halludecode.calibration.store import ArtifactStore
from halludecode.core import spec as hd_spec
from halludecode.core.artifact import PIN, Artifact, shaping
from halludecode.core.calibration import Calibration, CaptionPair, LabelledCaption
from halludecode.core.errors import InvalidParameter, InvalidRequest
from halludecode.core.plan import compile_plan
from halludecode.core.prompt import Prompt, digest
from halludecode.core.registry import STRATEGIES
from halludecode.core.request import Request, Sampling
from halludecode.core.strategy import Strategy
from halludecode.models.families import check_family

if TYPE_CHECKING:
    # Engines look up artifacts when they compile a plan, so calibration lies below them: it knows
    # the engine it is given by what it calls on it, and imports none.
    from halludecode.engines.api import Output
    from halludecode.engines.base import LocalEngine

Answer = str | CaptionPair | LabelledCaption | None  # the right one, where it is known
Samples = Sequence[tuple[Request, Answer]]
WORDS = ("yes", "no")
LIKELIEST = 1000  # tokens whose probabilities are read; the rest counts as one


class Calibrator:
    """The artifacts of one loaded model: those kept in a folder, and the making of new ones.

    Args:
        engine: Holds the model.
        folder: Where artifacts are kept, see `ArtifactStore`.
    """

    def __init__(self, engine: LocalEngine, folder: str | Path | None) -> None:
        self._engine, self.store = ref(engine), ArtifactStore(folder)
        self._known: dict[str, Artifact] = {}

    @property
    def engine(self) -> LocalEngine:
        """What holds the model, and this: each other they would outlive the last user of either."""
        engine = self._engine()
        assert engine is not None, "a calibrator is its engine's alone"
        return engine

    def forget(self) -> None:
        """Look artifacts up anew, in a store that has changed."""
        self._known.clear()

    def artifact(self, strategy: Strategy) -> Artifact | None:
        """The strategy's artifact: a kept one; optional ones are else made of built-in prompts."""
        if strategy.artifact is None:
            return None
        key = f"{strategy.name}|{shaping(strategy)}|{getattr(strategy, PIN, None)}"
        if key not in self._known:
            artifact = self.store.find(strategy, self.engine.digest)
            if artifact is None and strategy.artifact == "optional":
                artifact = self._make(strategy, None, "", 0, progress=False)
            if artifact is None:
                return None
            self._known[key] = artifact
        return self._known[key]

    def pinned(self, strategy: Strategy) -> Strategy:
        """A strategy that would take the artifact that fits, with that one named."""
        if getattr(strategy, PIN, "") is not None:
            return strategy
        artifact = self.artifact(strategy)
        return strategy if artifact is None else replace(strategy, **{PIN: artifact.name})

    def make(
        self,
        spec: hd_spec.Spec,
        samples: Samples | None = None,
        *,
        source: str = "",
        seed: int = 0,
        progress: bool = False,
    ) -> Artifact:
        """Make and keep an artifact; see `LocalEngine.calibrate`.

        Args:
            spec: One strategy.
            samples: Requests with their answers; None is the built-in prompts.
            source: Where the samples are from, for the record.
            seed: Of trained artifacts.
            progress: Show a bar on standard error.
        """
        strategies = hd_spec.parse(spec)
        if len(strategies) != 1:
            raise InvalidParameter("calibrate takes one strategy at a time.")
        strategy = strategies[0]
        if not strategy.declares("calibrate"):
            able = ", ".join(cls.name for cls in STRATEGIES if cls.declares("calibrate"))
            raise InvalidParameter(f"{strategy.name} has nothing to calibrate; these have: {able}.")
        if samples is not None and not samples:
            raise InvalidParameter("No samples to calibrate on: give at least one request.")
        artifact = self._make(strategy, samples, source, seed, progress=progress)
        self.store.save(artifact)
        self.forget()
        return artifact

    def _make(
        self,
        strategy: Strategy,
        samples: Samples | None,
        source: str,
        seed: int,
        *,
        progress: bool,
    ) -> Artifact:
        if samples is not None:
            return self._made_of(list(samples), "samples", strategy, source, seed, progress)
        given, kind = built_in(), "built-in prompts"
        try:
            return self._made_of(given, kind, strategy, source, seed, progress)
        except InvalidRequest:  # an engine that cuts our pictures otherwise than the processor
            given = [pair for pair in given if not pair[0].images]
            kind = f"{kind}, no picture"
            return self._made_of(given, kind, strategy, source, seed, progress)

    def _made_of(
        self,
        samples: Samples,
        kind: str,
        strategy: Strategy,
        source: str,
        seed: int,
        progress: bool,
    ) -> Artifact:
        engine = self.engine
        prompts = [engine.prompt_of(request) for request, _ in samples]
        answers = [answer for _, answer in samples]
        bare = replace(engine.model_info, artifact={})
        needs = compile_plan((strategy,), bare, engine=engine.name).needs
        check_family(engine.config, needs, strategy.name)
        calibration = Calibration(
            prompts,
            # The residuals of many whole prompts would fill the memory.
            partial(engine.activations, remember=False),
            answers,
            _scorer(engine, samples),
            partial(_soft_prompt, engine, prompts, answers, seed, progress),
            partial(_track, strategy.name, progress),
        )
        with engine.guard():
            tensors = strategy.calibrate(calibration, engine.model_info)
            tensors = {name: value.cpu() for name, value in tensors.items()}
        origin = f"{len(samples)} {kind}" + (f" of {source}" if source else "")
        labelled = sum(answer is not None for answer in answers)
        content = digest(*(p.key for p in prompts), answers)[:12]
        origin += f" ({labelled} with answers, digest {content}), seed {seed}"
        about = (strategy.name, shaping(strategy), engine.digest)
        return Artifact(*about, tensors, origin, tuple(calibration.notes))


def _scorer(
    engine: LocalEngine, samples: Samples
) -> Callable[[Strategy, Mapping[str, Tensor]], float]:
    """`Calibration.score` on these samples."""
    labelled = [(request, answer) for request, answer in samples if answer in WORDS]
    requests = [request for request, _ in labelled or samples]
    keep = None if labelled else min(engine.model_info.vocab_size, LIKELIEST)
    sampling = Sampling(max_new_tokens=1, logprobs=keep)

    def score(strategy: Strategy, artifact: Mapping[str, Tensor]) -> float:
        plan = compile_plan(
            (strategy,),
            engine.model_info,
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
    engine: LocalEngine,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    seed: int,
    progress: bool,
) -> Mapping[str, Tensor]:
    pairs = [
        (prompt, answer.capitalize() if answer in WORDS else answer)
        for prompt, answer in zip(prompts, answers, strict=True)
        if isinstance(answer, str) and prompt.pictures
    ]
    return engine.train_soft_prompt(pairs, seed=seed, progress=progress)


def _track(name: str, progress: bool, things: Sequence[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(things, desc=name, disable=not progress, dynamic_ncols=True)
