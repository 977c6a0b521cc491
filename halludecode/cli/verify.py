"""A model's strategies, each once: the report of `halludecode doctor --verify MODEL`."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from halludecode import __version__
from halludecode.core import spec as hd_spec
from halludecode.core.errors import (
    HalluDecodeError,
    HookNeverFired,
    InvalidModel,
    InvalidParameter,
    InvalidScores,
    MissingExtra,
    OutOfMemory,
)
from halludecode.core.registry import STRATEGIES

if TYPE_CHECKING:
    from halludecode.core.strategy import Strategy
    from halludecode.engines.api import Output
    from halludecode.engines.base import LocalEngine

ENGINES = ("hf", "vllm")
PICTURE, QUESTION, TOKENS = "testbed:3", "Please describe this image in detail.", 16
SECONDS = 600.0  # that the strategies of one engine may take; loading a model comes on top
# Nats between the two likeliest tokens below which either may be written: rounding, by dtype.
NEAR_TIE = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.25}
FAILURES = (HookNeverFired, InvalidScores, OutOfMemory)  # the other sentences are refusals
BROKEN = ("differs", "failed")  # words of a law that does not hold


@dataclass
class Checked:
    """What one strategy did on one engine.

    Attributes:
        word: "ok", "changed nothing here", "refused", "differs", "failed" or "not run".
        why: More of it, a sentence or less.
        output: Its answer, for the next engine to agree with.
    """

    word: str
    why: str = ""
    output: Output | None = field(default=None, repr=False)


def check_asked(engines: Sequence[str], specs: Sequence[str]) -> None:
    """Refuse what is misspelt before a model is loaded.

    Raises:
        InvalidParameter: An engine whose model is not loaded here.
        UnknownStrategy, InvalidParameter: From parsing.
    """
    for name in engines:
        if name not in ENGINES:
            known = " or ".join(ENGINES)
            raise InvalidParameter(f"--engine {name}: --verify loads the model here; use {known}.")
    for spec in specs:
        hd_spec.parse(spec)


def report(
    model: str,
    load: Callable[..., LocalEngine],
    engines: Sequence[str] = (),
    specs: Sequence[str] = (),
    seconds: float = SECONDS,
    progress: Callable[[Sequence[str], str], Iterable[str]] = lambda specs, _: specs,
) -> dict[str, Any]:
    """Load a model into each engine and run the strategies there.

    Args:
        model: What `halludecode.load` takes.
        load: Called with the model and ``engine=``.
        engines: Of `ENGINES`; empty for all that serve the model here.
        specs: Strategies; empty for every one that is registered.
        seconds: That an engine's strategies may take; those it does not come to are "not run".
        progress: Wraps the strategies while they run; it is told the engine, too.

    Returns:
        ``halludecode``, ``python``, ``model``, ``asked``, ``engines`` (name -> what the engine
        `describe`s, or ``why`` it is not here), ``strategies`` (spec -> engine -> ``word``,
        ``why``), ``broken`` (spec and engine of each law that does not hold).

    Raises:
        InvalidModel: It cannot be loaded into an engine that was asked for, or not into the first.
        MissingExtra: vLLM was asked for and is not installed.
    """
    chosen = list(specs) or STRATEGIES.names()
    told: dict[str, dict[str, Any]] = {}
    checked: dict[str, dict[str, Checked]] = {spec: {} for spec in chosen}
    for name in engines or ENGINES:
        before = {spec: next(iter(by.items()), None) for spec, by in checked.items()}
        try:
            made = _Checks(load(model, engine=name), before)
        except (InvalidModel, MissingExtra) as error:
            if name in engines or name == ENGINES[0]:
                raise
            told[name] = {"why": str(error)}
            continue
        told[name] = made.about
        for spec, check in made.all_of(progress(chosen, name), seconds):
            checked[spec][name] = check
        made.close()
    said = {
        spec: {name: {"word": c.word, "why": c.why} for name, c in by.items()}
        for spec, by in checked.items()
    }
    return {
        "halludecode": __version__,
        "python": sys.version.split()[0],
        "model": model,
        "asked": {"picture": PICTURE, "question": QUESTION, "tokens": TOKENS},
        "engines": told,
        "strategies": said,
        "broken": [[s, n] for s, by in checked.items() for n, c in by.items() if c.word in BROKEN],
    }


def describe(found: dict[str, Any]) -> list[str]:
    """The report as lines, one a strategy."""
    lines = [f"halludecode {found['halludecode']}, python {found['python']}: {found['model']}"]
    for name, about in found["engines"].items():
        if "why" in about:
            lines.append(f"{name}: not run: {about['why']}")
            continue
        versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        kind = f"{about['family']}, {about['class']}, weights {about['model_digest'][:12]}"
        lines.append(f"{name}: {kind}, {about['dtype']} on {about['device']}; {versions}")
    asked = found["asked"]
    lines += [f'{asked["tokens"]} tokens on "{asked["question"]}" about {asked["picture"]}', ""]
    width = max(map(len, found["strategies"]))
    for spec, by in found["strategies"].items():
        parts = [": ".join((name, ", ".join(filter(None, c.values())))) for name, c in by.items()]
        lines.append(f"{spec:<{width}}  {'; '.join(parts)}")
    words = [c["word"] for by in found["strategies"].values() for c in by.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words)))
    broken = ", ".join(f"{spec} on {name}" for spec, name in found["broken"])
    state = f"do not hold of {broken}" if broken else "hold"
    return [*lines, "", f"{counts}. Off equals greedy, hooks fire, engines agree: these {state}."]


class _Checks:
    """Strategies on one engine; ``before`` is what another one made of each."""

    def __init__(self, engine: LocalEngine, before: dict[str, tuple[str, Checked] | None]) -> None:
        from halludecode.engines.api import Request, Sampling

        self.engine, self.before = engine, before
        self.about = {
            **engine.describe(),
            "class": (getattr(engine.config, "architectures", None) or ["unknown"])[0],
        }
        self.request = Request(QUESTION, (PICTURE,))
        self.sampling = Sampling(max_new_tokens=TOKENS, logprobs=2)
        self.tie = NEAR_TIE.get(self.about["dtype"], NEAR_TIE["float32"])
        self.greedy = self._answer("greedy")

    def all_of(self, specs: Iterable[str], seconds: float) -> Iterable[tuple[str, Checked]]:
        """Each strategy's check, until the time is over."""
        until = time.monotonic() + seconds
        late = Checked("not run", f"the {seconds:g} s were over (--seconds)")
        for spec in specs:
            yield spec, self.of(spec) if time.monotonic() < until else late

    def of(self, spec: str) -> Checked:
        """One strategy; whatever happens to it, the others are still to be told of."""
        try:
            return self._of(_brief(hd_spec.parse(spec)), self.before.get(spec))
        except HalluDecodeError as error:
            failed = isinstance(error, FAILURES) or type(error) is HalluDecodeError
            return Checked("failed" if failed else "refused", str(error))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return Checked("failed", f"{type(error).__name__}: {first}")

    def close(self) -> None:
        """Give the model's memory back, which the next engine wants."""
        getattr(self.engine, "close", lambda: None)()
        del self.engine
        gc.collect()
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _of(self, strategies: list[Strategy], before: tuple[str, Checked] | None) -> Checked:
        on = self._answer(strategies)
        if all(each.off for each in strategies):
            off = [type(each)(**{**each.resolved(), **each.off}) for each in strategies]
            plan = self.engine.plan(off, skip_off=False)
            if why := self._unlike(self._answer(plan), self.greedy, "greedy"):
                return Checked("differs", f"at its off point {why}", on)
        other = before and before[1].output
        if before and other and (why := self._unlike(on, other, f"engine {before[0]}")):
            return Checked("differs", why, on)
        moved = _moved(on, self.greedy)
        unmoved = "ok" if hd_spec.format(strategies) == "greedy" else "changed nothing here"
        return Checked("ok" if moved else unmoved, " ".join((moved, *on.warnings)).strip(), on)

    def _answer(self, strategy: Any) -> Output:
        return self.engine.generate([self.request], strategy, self.sampling)[0]

    def _unlike(self, mine: Output, other: Output, whose: str) -> str:
        """Where tokens first differ, unless the two likeliest were as good as equal; "" if not."""
        pairs = zip_longest(mine.logprobs or (), other.logprobs or ())
        for number, (x, y) in enumerate(pairs, start=1):
            if x is None or y is None:
                return f"it ends at token {number} where {whose} does not, or the other way round"
            if x.token_id != y.token_id:
                tied = min(_gap(x.top), _gap(y.top)) < self.tie
                return "" if tied else f"token {number} is {x.token!r}, {y.token!r} on {whose}"
        return ""


def _brief(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Strategies that write a description first write no more of it than an answer has."""
    return [
        type(each)(**{**each.resolved(), "tokens": min(each.resolved()["tokens"], TOKENS)})
        if "tokens" in each.resolved()
        else each
        for each in strategies
    ]


def _moved(on: Output, plain: Output) -> str:
    """What a strategy changed; "" where neither a token nor a score moved."""
    pairs = list(zip(on.logprobs or (), plain.logprobs or (), strict=False))
    for number, (x, y) in enumerate(pairs, start=1):
        if x.token_id != y.token_id:
            return f"other tokens from number {number} on"
    most = max((abs(x.logprob - y.logprob) for x, y in pairs), default=0.0)
    return f"greedy's tokens, scores moved by up to {most:.2g} nats" if most > 1e-4 else ""


def _gap(top: dict[int, float]) -> float:
    """Nats between the two likeliest; infinite where only one is left."""
    best = sorted(top.values(), reverse=True)[:2]
    return best[0] - best[1] if len(best) == 2 else math.inf
