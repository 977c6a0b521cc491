"""Engines that hold the model themselves: what they have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halludecode.calibration.calibrator import Calibrator, Samples
from halludecode.core import spec as hd_spec
from halludecode.core.activations import ActivationRequest, Activations
from halludecode.core.artifact import Artifact
from halludecode.core.errors import InvalidRequest, UnsupportedStrategy
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt
from halludecode.engines.api import (
    Chunk,
    Engine,
    ExtraRows,
    Output,
    Request,
    Sampling,
    checked_extra_rows,
    one_answer,
)
from halludecode.engines.inputs.chat import to_prompt
from halludecode.engines.inputs.processor import LRU, InputProcessor
from halludecode.engines.inputs.rows import Row, RowBuilder
from halludecode.engines.outputs import settled, shower
from halludecode.engines.token_rules import TokenRules, rules_of
from halludecode.models.families import check_family, family_of
from halludecode.models.info import model_info

PLANS = 256  # compiled strategies that are remembered: clients of a server choose freely


class Writing(Protocol):
    """An answer while it is written."""

    @property
    def text(self) -> str:
        """So far."""
        ...

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        ...


class LocalEngine(Engine):
    """A model loaded here: plans, artifacts, inputs and streams, whatever computes the forwards.

    Args:
        model_id: The model's name.
        config: As transformers loads it.
        processor: The model's own.
        serves: Needs this kind of engine serves; a family may lack some.
        artifacts: Folder of what `calibrate` made; None is the user's own, see
            `ArtifactStore`.
        extra_rows: When rows beside main begin, where the engine can choose.

    Attributes:
        family: What sets the model's family apart.
        model_info: The model's numbers, as strategies see them.
        inputs: Renders prompts and preprocesses pictures.
        row_builder: Makes the rows of a request.
        calibrator: Finds and makes artifacts.

    Raises:
        InvalidModel: The family is unknown.
    """

    def __init__(
        self,
        model_id: str,
        config: Any,
        processor: Any,
        serves: frozenset[str],
        artifacts: str | Path | None,
        extra_rows: ExtraRows = "on_demand",
    ) -> None:
        self.extra_rows = checked_extra_rows(extra_rows)
        self.model_id, self.config, self.processor = model_id, config, processor
        self.family = family_of(config)
        self.model_info = model_info(config)
        self.provides = serves - self.family.lacks.keys()
        self.inputs = InputProcessor(processor, config, self.family)
        self.row_builder = RowBuilder(self.inputs, shower(processor, self.family))
        self.calibrator = Calibrator(self, artifacts)
        self._serves = serves
        self._plans: LRU[Plan] = LRU(PLANS)

    # What only an engine itself knows -------------------------------------------------------------
    @property
    @abstractmethod
    def digest(self) -> str:
        """Identity of the weights."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Most tokens a row may have."""

    @property
    @abstractmethod
    def end_tokens(self) -> list[int]:
        """End-of-sequence ids."""

    @abstractmethod
    def rows(self, request: Request, strategy: hd_spec.Spec | Plan = "greedy") -> dict[str, Row]:
        """What each row of the forward will be fed, without generating (earlier passes are run)."""

    @abstractmethod
    def activations(self, request: ActivationRequest, *, remember: bool = True) -> Activations:
        """What a pass of the plain model keeps.

        Args:
            request: What is read, and what is kept of it.
            remember: Keep it for whoever asks the same again, where the engine does that.
        """

    @abstractmethod
    def _written(
        self, request: Request, plan: Plan, sampling: Sampling
    ) -> Iterator[Writing | Output]:
        """One answer after each of its tokens, at the end the `Output`."""

    @abstractmethod
    def _hardware(self) -> tuple[Any, str, Mapping[str, str]]:
        """The weights' dtype, the device, and versions of libraries beside torch's."""

    # In common ------------------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Any:
        """The model's own."""
        return self.inputs.tokenizer

    def prompt_of(self, request: Request) -> Prompt:
        """A request as the model reads it, its pictures decoded.

        Raises:
            InvalidRequest: A picture or message cannot be used.
        """
        return to_prompt(request, self.family.placeholder)

    def token_rules(self, sampling: Sampling) -> TokenRules:
        """Tokens a request bans, allows or pushes.

        Raises:
            InvalidRequest: They are not of this model, or leave nothing to write.
        """
        size = self.model_info.vocab_size
        return rules_of(sampling, self.tokenizer, size, self.end_tokens)

    def guard(self) -> AbstractContextManager[None]:
        """Held while somebody looks inside the model; nobody else's forward runs meanwhile."""
        return nullcontext()

    def plan(self, strategy: hd_spec.Spec | Plan, *, skip_off: bool = True) -> Plan:
        """Compile a strategy for this model; an optional artifact is made on first use.

        Args:
            strategy: Spec string, strategy instance or YAML form; a plan of this engine is given
                back as it is.
            skip_off: Drop strategies that stand at their off point.

        Raises:
            UnknownStrategy, InvalidParameter, UnsupportedStrategy: The sentence says why.
        """
        if isinstance(strategy, Plan):
            return strategy
        strategies = tuple(self.calibrator.pinned(each) for each in hd_spec.parse(strategy))
        classes = [type(each).__qualname__ for each in strategies]
        key = f"{hd_spec.format(strategies)}|{classes}|{skip_off}"
        plan = self._plans.get(key)
        if plan is None:
            artifacts = {hd_spec.format((s,)): self.calibrator.artifact(s) for s in strategies}
            plan = compile_plan(
                strategies,
                self.model_info,
                self._serves,
                engine=self.name,
                skip_off=skip_off,
                artifacts={text: a for text, a in artifacts.items() if a is not None},
                model=self.model_id,
            )
            check_family(self.config, plan.needs, plan.canonical)
            self._check_plan(plan)
            self._plans.put(key, plan)
        return plan

    def _check_plan(self, plan: Plan) -> None:
        """Raise UnsupportedStrategy for what this engine, as it was started, cannot run."""

    def calibrate(
        self,
        strategy: hd_spec.Spec,
        samples: Samples | None = None,
        *,
        source: str = "",
        seed: int = 0,
        progress: bool = False,
    ) -> Artifact:
        """Make and keep a strategy's artifact; from then on this engine uses it.

        Args:
            strategy: One strategy, with the parameters its artifact depends on.
            samples: Requests, each with "yes", "no", a caption, a `CaptionPair` or None; None is
                eight built-in prompts without answers.
            source: Where the samples are from, for the record.
            seed: Of trained artifacts.
            progress: Show a bar on standard error.

        Raises:
            InvalidParameter: Nothing to calibrate, or the samples lack what the strategy needs.
            InvalidData: The artifact cannot be written.
        """
        artifact = self.calibrator.make(
            strategy, samples, source=source, seed=seed, progress=progress
        )
        self.forget_plans()
        return artifact

    def forget_plans(self) -> None:
        """Compile strategies anew, with the artifacts there are by now."""
        self._plans.clear()

    def train_soft_prompt(
        self, pairs: Sequence[tuple[Prompt, str]], *, seed: int, progress: bool
    ) -> dict[str, Tensor]:
        """Train vectors that stand where a picture's features would; see `hf.soft_prompt`.

        Raises:
            UnsupportedStrategy: This engine cannot train.
        """
        raise UnsupportedStrategy(
            f"This artifact is trained on the model itself, which engine {self.name!r} cannot do; "
            "make it with engine='hf'."
        )

    def describe(self) -> dict[str, Any]:
        """Model, weights digest, dtype, device and library versions, for run records."""
        import transformers

        dtype, device, versions = self._hardware()
        return {
            "model": self.model_id,
            "model_digest": self.digest,
            "family": self.config.model_type,
            "engine": self.name,
            "dtype": str(dtype).removeprefix("torch."),
            "device": device,
            "image_processor": type(self.processor.image_processor).__name__,
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                **versions,
            },
        }

    def stream(
        self,
        request: Request,
        strategy: hd_spec.Spec | Plan = "greedy",
        sampling: Sampling | None = None,
    ) -> Iterator[Chunk]:
        """Pieces of one answer as they are written; the last chunk carries the `Output`.

        A search over beams gives its answer in one piece.

        Raises:
            InvalidRequest: More than one answer is asked for.
        """
        sampling = one_answer(sampling)
        sent, count = "", 0
        for answer in self._written(request, self.plan(strategy), sampling):
            if isinstance(answer, Output):
                yield Chunk(answer.text[len(sent) :], answer.token_ids[count:], answer)
                return
            ready = settled(answer.text, sampling.stop)
            if ready.startswith(sent) and len(ready) > len(sent):
                yield Chunk(ready[len(sent) :], tuple(answer.ids[count:]))
                sent, count = ready, len(answer.ids)


def local(engine: Any) -> LocalEngine:
    """An engine whose model can be looked into.

    Raises:
        InvalidRequest: The model is elsewhere.
    """
    if not isinstance(engine, LocalEngine):
        raise InvalidRequest(
            f"Engine {getattr(engine, 'name', engine)!r} cannot show a model's insides; load the "
            "model here with halludecode.load(model)."
        )
    return engine


def listed(requests: Request | Sequence[Request]) -> list[Request]:
    """One request or any number of them, as a list."""
    return [requests] if isinstance(requests, Request) else list(requests)
