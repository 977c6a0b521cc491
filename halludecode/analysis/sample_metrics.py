"""What is read of one sample: head divergence, attention mass, or what silencing each head does.

On the Hugging Face engine all three are plans like any other, of strategies that look and do not
decode; they are not registered. Elsewhere divergence and mass are taken from activations, which
every engine serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halludecode.core.activations import ActivationRequest
from halludecode.core.branch import Branch
from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.heads import divergence
from halludecode.core.model_info import ModelInfo
from halludecode.core.plan import Plan, compile_plan
from halludecode.core.prompt import Prompt
from halludecode.core.sinks import is_sink
from halludecode.core.state import State
from halludecode.core.strategy import Strategy
from halludecode.engines.api import Output, Request, Sampling
from halludecode.engines.base import LocalEngine

if TYPE_CHECKING:
    from halludecode.core.attention import Attention
    from halludecode.core.step import Step

Maps = dict[str, Tensor]  # name -> float32 [L, H]
FORCE = 1e4  # logits added to the token an answer goes on with


@dataclass(frozen=True)
class Sinks:
    """Which tokens are attention sinks, see `core.sinks`."""

    dims: tuple[int, ...]
    tau: float


def sinks_of(engine: LocalEngine, spec: str = "var") -> Sinks:
    """The sinks that a `var` strategy finds on this model."""
    part = engine.plan(spec).parts[0]
    return Sinks(part.strategy.sinks(part.model_info), part.strategy.threshold(part.model_info))


class _Unshared(Plan):
    """A plan whose prompts are read whole: no picture's prefix is read apart from its question."""

    reusable = main_reusable = False  # type: ignore[assignment]


class _Numbered(Strategy):
    """Numbers requests in the order they come, so that what is read of each finds its place."""

    name = "heads"

    def __init__(self) -> None:
        self.count = 0

    def prepare(self, activations: Mapping[str, Any], m: ModelInfo) -> State:
        self.count += 1
        return {"case": torch.tensor(self.count - 1)}

    def run(self, engine: LocalEngine, requests: Sequence[Request], tokens: int) -> list[Output]:
        """Answers under this strategy; what it reads is kept on it."""
        compiled = compile_plan((self,), engine.model_info, engine.provides, engine=engine.name)
        plan = _Unshared(**{f.name: getattr(compiled, f.name) for f in fields(compiled)})
        self.reset()
        outputs = engine.generate(requests, plan, Sampling(max_new_tokens=tokens))
        if self.count != len(requests):
            raise HookNeverFired(f"{len(requests)} samples were given, {self.count} were read.")
        return outputs

    def reset(self) -> None:
        """Forget what tracing left behind."""
        self.count = 0


class Watch(_Numbered):
    """Reads every layer at every emitting query.

    Args:
        read: ``(a) -> {name: float32 [R, H]}``.
        blind: Whether the image-free row runs beside, fed with the same tokens.
    """

    def __init__(self, read: Callable[[Attention], Maps], *, blind: bool) -> None:
        super().__init__()
        self.read, self.blind = read, blind
        self.maps: dict[int, list[Maps]] = {}  # request -> per token

    def reset(self) -> None:
        """Forget what tracing left behind."""
        super().reset()
        self.maps.clear()

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The image-free row, where it is read."""
        return {"blind": Branch(prompt.without_images())} if self.blind else {}

    def attend(self, a: Attention) -> None:
        """Read a layer; after the last one, keep them all, 0 in layers without attention."""
        layers = a.carry.setdefault("layers", [])
        layers.append(self.read(a))
        attending = a.m.attending(range(a.m.num_layers))
        if a.layer < attending[-1]:
            return
        whole = {n: torch.stack([layer[n] for layer in layers], 1).cpu() for n in layers[0]}
        if len(attending) < a.m.num_layers:
            whole = {n: _at_layers(x, attending, a.m.num_layers) for n, x in whole.items()}
        for r, case in enumerate(a.state["case"].tolist()):  # finished answers are gone by and by
            self.maps.setdefault(case, []).append({n: maps[r] for n, maps in whole.items()})


def _at_layers(x: Tensor, attending: Sequence[int], depth: int) -> Tensor:
    """[R, depth, H] of [R, attending layers, H]."""
    made = x.new_zeros(len(x), depth, x.shape[-1])
    made[:, list(attending)] = x
    return made


def _read_divergence(a: Attention) -> Maps:
    vhd, inliers = divergence(a.head_outputs("main")[:, -1], a.head_outputs("blind")[:, -1])
    return {"vhd": vhd, "inliers": inliers}


def _read_mass(a: Attention, sinks: Sinks) -> Maps:
    sink = a.token_mask("sink", partial(is_sink, dims=sinks.dims, tau=sinks.tau))
    image, stuck, others = a.mass(a.image, a.image & sink, a.image & ~sink)
    return {"image": image[..., -1], "sinks": stuck[..., -1], "others": others[..., -1]}


@dataclass(frozen=True)
class HeadReading:
    """What was read of one sample: per written token, maps; and the answer, where one was."""

    tokens: Sequence[Maps]
    output: Output | None = None


def divergences(
    engine: LocalEngine, requests: Sequence[Request], tokens: int
) -> Iterator[HeadReading]:
    """VHD "vhd" of every written token, and "inliers": outliers zeroed (arXiv:2412.13949).

    Both streams are the plain model's and read the same tokens; without the Hugging Face engine
    only the first token is looked at.
    """
    if engine.name == "hf":
        yield from _watched(engine, requests, tokens, Watch(_read_divergence, blind=True))
        return
    layers = tuple(range(engine.model_info.num_layers))
    for request in requests:
        prompt = engine.prompt_of(request)
        sighted, blind = (
            engine.activations(ActivationRequest(variant, heads=layers)).heads
            for variant in (prompt, prompt.without_images())
        )
        vhd, inliers = divergence(sighted, blind)
        yield HeadReading([{"vhd": vhd, "inliers": inliers}])


def masses(engine: LocalEngine, requests: Sequence[Request], sinks: Sinks) -> Iterator[HeadReading]:
    """Attention of the last prompt token on "image" tokens: on "sinks" among them and "others".

    From activations, layer 0 has no sinks: what enters it is not shown, and no activation is
    massive yet.
    """
    if engine.name == "hf":
        read = partial(_read_mass, sinks=sinks)
        yield from _watched(engine, requests, 1, Watch(read, blind=False))
        return
    depth = engine.model_info.num_layers
    for request in requests:
        asking = ActivationRequest(
            engine.prompt_of(request),
            image=tuple(range(depth)),
            hidden=tuple(range(depth - 1)) if sinks.dims else (),
            every_token=True,
        )
        activations = engine.activations(asking)
        stuck = torch.zeros(depth, 1, activations.image.shape[-1], dtype=torch.bool)
        if sinks.dims:  # what leaves a layer enters the next
            is_sink_token = is_sink(activations.hidden, dims=sinks.dims, tau=sinks.tau)  # [L-1, T]
            stuck[1:, 0] = is_sink_token[:, activations.image_mask]
        parts = {
            "image": activations.image,
            "sinks": activations.image * stuck,
            "others": activations.image * ~stuck,
        }
        yield HeadReading([{name: part.sum(-1) for name, part in parts.items()}])


def _watched(
    engine: LocalEngine, requests: Sequence[Request], tokens: int, watch: Watch
) -> Iterator[HeadReading]:
    outputs = watch.run(engine, requests, tokens)
    for i, output in enumerate(outputs):
        yield HeadReading(watch.maps[i][: len(output.token_ids)], output)


# Ablation ---------------------------------------------------------------------------------------


class Silence(_Numbered):
    """Silences one head per request, at every position, and has a given answer written.

    Args:
        heads: Per request (layer, head); None silences nothing.
        answer: Per step, the ids that count as right; the first of them is written.
    """

    name = "silence"

    def __init__(
        self, heads: Sequence[tuple[int, int] | None], answer: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.places = torch.tensor([head or (-1, -1) for head in heads])
        self.answer = answer
        self.log_p: dict[int, list[float]] = {}  # request -> log p of every step

    def reset(self) -> None:
        """Forget what tracing left behind."""
        super().reset()
        self.log_p.clear()

    def attend(self, a: Attention) -> None:
        """Silence each request's head, if it is in this layer."""
        case = a.state["case"]
        layer, head = self.places.to(case.device)[case].unbind(-1)  # [R]
        every = torch.arange(a.m.num_heads, device=case.device)
        silent = (layer == a.layer)[:, None] & (head[:, None] == every)
        a.scale_heads(1 - silent.float(), queries="all")

    def combine(self, step: Step) -> Tensor:
        """Read the right token's log-probability, then write it."""
        log_p, forced = step["main"].log_softmax(-1), step["main"].clone()
        place, case = (step.t[:, 0] - 1).tolist(), step.state["case"].tolist()
        for row, (t, i) in enumerate(zip(place, case, strict=True)):
            if t < len(self.answer):
                right = list(self.answer[t])
                self.log_p.setdefault(i, []).append(float(log_p[row, right].logsumexp(-1)))
                forced[row, right[0]] = forced[row].max() + FORCE
        return forced


def check_ablation(engine: Any) -> None:
    """Refuse engines that cannot silence heads one by one.

    Raises:
        UnsupportedStrategy: It is another than the Hugging Face engine.
    """
    if engine.name != "hf":
        raise UnsupportedStrategy(
            f"Metric 'ablation' silences heads one by one, which engine {engine.name!r} does not "
            "do; use engine='hf', or the metrics vhd and mass."
        )


def ablation(engine: LocalEngine, request: Request, answer: Sequence[Sequence[int]]) -> Tensor:
    """float32 [L, H, T]: what silencing each head does to the log-probability of every step.

    Args:
        engine: On the Hugging Face engine.
        request: The question, with a picture.
        answer: Per step, the ids that count as right; the first of them is fed on.
    """
    m = engine.model_info
    heads = [(layer, head) for layer in range(m.num_layers) for head in range(m.num_heads)]
    silence = Silence([None, *heads], answer)
    silence.run(engine, [request] * (1 + len(heads)), len(answer))
    log_p = torch.tensor([silence.log_p[i] for i in range(1 + len(heads))])
    return (log_p[1:] - log_p[0]).reshape(m.num_layers, m.num_heads, -1)
