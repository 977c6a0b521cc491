"""A strategy on a plain transformers model, whose own `generate` then obeys it.

    with hd.applied(model, processor, "var"):
        model.generate(**inputs)

Only strategies without extra rows or earlier passes; everything else needs the engine. What a
forward holds is read from its own inputs, so batches, padding, sampling, beams, streamers and
generation in another thread work as they are, on any cache that keeps every token. What cannot
obey is refused in a sentence: whoever feeds several tokens after the prompt (assisted decoding,
a second turn on a kept cache), or no cache at all.

Within the block the model has two attributes of its own, `forward` and `generate`; afterwards it is
as it was. The second watches the first: a `generate` whose forwards never came by is an error.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from halludecode.core.errors import HookNeverFired, UnsupportedStrategy
from halludecode.core.needs import quoted
from halludecode.core.plan import Plan
from halludecode.core.spec import Spec
from halludecode.engines.hf.applied_forward import AppliedForward
from halludecode.engines.hf.hooks import attention_set, lock_of, uncompiled
from halludecode.models.families import check_family

# Options of `generate` that feed the model otherwise than token by token -> what they are.
REFUSED = {
    "assistant_model": "assisted decoding",
    "prompt_lookup_num_tokens": "prompt lookup decoding",
    "assistant_early_exit": "early-exit decoding",
    "use_mtp": "multi-token prediction",
    "guidance_scale": "classifier-free guidance",
    "prefill_chunk_size": "chunked prefill",
    "use_cache": "generation without a KV cache",
}
HARMLESS = {"guidance_scale": (None, 1), "use_cache": (None, True)}
BATCHED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
_OPEN: WeakSet[nn.Module] = WeakSet()  # models within a block


@contextmanager
def applied(model: Any, processor: Any, strategy: Spec) -> Iterator[Plan]:
    """Within this block the model's own `generate` obeys a strategy; yields the compiled plan.

    An engine over the same model goes its own way within the block, and `torch.compile`d modules
    run uncompiled. Answers that another thread is writing at the end of the block are waited for.

    Args:
        model: A transformers model, or a wrapper of one (`torch.compile`, PEFT, DataParallel).
        processor: The model's own.
        strategy: Spec string, strategy instance or YAML form.

    Raises:
        InvalidModel: There is no transformers model of a known family inside.
        UnsupportedStrategy: It needs extra rows or earlier passes, the family's own `generate`
            cannot carry it, another block is open on this model, or, from the forward, `generate`
            was called in a way that cannot obey.
        HookNeverFired: After the first forward, if a declared hook was not called; from `generate`,
            if it came back without the model's forward having obeyed.
    """
    from halludecode.engines.hf.engine import HFEngine

    engine = HFEngine(model, processor)
    plan, inner = engine.plan(strategy), engine.hf_model.model
    check_family(inner.config, ("generate",), f"hd.applied({plan.canonical})")
    missing = plan.needs & {"rows", "main prompt", "activations", "search", "confidence", "tally"}
    if missing:
        raise UnsupportedStrategy(
            f"{plan.canonical} needs {quoted(missing)}, which a plain model.generate() cannot "
            "give; use hd.load(...).generate(..., strategy=...) instead."
        )
    forward = AppliedForward(inner, engine.hf_model.family, plan)
    watch = GenerateWatch(inner, plan, forward)
    with ExitStack() as stack:
        with lock_of(inner):
            _enter(stack, inner, forward, watch)
        stack.callback(watch.wait)
        yield plan
    if not (watch.calls or forward.called):
        warnings.warn(
            f"hd.applied({plan.canonical}): the model did not run within the block; call generate "
            "of the model that the block was opened on.",
            stacklevel=3,
        )


def _enter(stack: ExitStack, model: Any, forward: AppliedForward, watch: GenerateWatch) -> None:
    """Everything a block changes, undone by the stack."""
    if model in _OPEN:
        raise UnsupportedStrategy(
            "hd.applied: a block is open on this model already; compose the strategies in one, as "
            "in hd.applied(model, processor, 'var+spin')."
        )
    _OPEN.add(model)
    stack.callback(_OPEN.discard, model)
    stack.enter_context(uncompiled())
    stack.enter_context(_attention_kept(model, forward.attends))
    stack.enter_context(_own_attribute(model, "forward", forward))
    stack.enter_context(_own_attribute(model, "generate", watch))
    for name in BATCHED:
        if hasattr(model, name):
            refusal = _refusing(f"hd.applied({forward.plan.canonical}): {name}()")
            stack.enter_context(_own_attribute(model, name, refusal))


class GenerateWatch:
    """A model's `generate` within a block: refuses what cannot obey, and checks that it did.

    Args:
        model: The model.
        plan: What acts.
        forward: The model's `forward` within the block.

    Attributes:
        calls: How often it was called.
    """

    def __init__(self, model: Any, plan: Plan, forward: AppliedForward) -> None:
        self._model, self._plan, self._forward = model, plan, forward
        self._generate = model.generate
        self._running, self._idle = 0, threading.Condition()
        self.calls = 0
        functools.update_wrapper(self, self._generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `generate` returns.

        Raises:
            UnsupportedStrategy: An option that cannot obey.
            HookNeverFired: It wrote an answer, and the strategy did not take part.
        """
        self._refuse(kwargs)
        before = self._forward.begun, self._forward.grown
        with self._idle:
            self.calls += 1
            self._running += 1
        try:
            made = self._generate(*args, **kwargs)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
        self._check_obeyed(made, _prompt_of(args, kwargs), *before)
        return made

    def wait(self) -> None:
        """Until no call is running, whichever thread made it."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)

    def _refuse(self, given: dict[str, Any]) -> None:
        for name, what in REFUSED.items():
            configs = (given.get("generation_config"), self._model.generation_config)
            known = (getattr(config, name, None) for config in configs)
            value = (
                given[name] if name in given else next((v for v in known if v is not None), None)
            )
            if value not in HARMLESS.get(name, (None, False)):
                shown = f"={value!r}" if isinstance(value, bool | int | float) else ""
                raise UnsupportedStrategy(
                    f"hd.applied({self._plan.canonical}): {what} ({name}{shown}) feeds the model "
                    "in a way that a strategy cannot follow; leave it out, or use "
                    "hd.load(model, processor=processor).generate(...)."
                )

    def _check_obeyed(self, made: Any, prompt: Any, begun: int, grown: int) -> None:
        """This, not the forward itself, knows that an answer was written, and how long it is."""
        begun, grown = self._forward.begun - begun, self._forward.grown - grown
        sequences = getattr(made, "sequences", made)
        written = 1  # where `generate` gives back something of its own
        if isinstance(sequences, Tensor) and isinstance(prompt, Tensor):
            written = sequences.shape[-1] - prompt.shape[-1]
        if begun + grown >= min(written, 1) and grown >= written - 1:
            return
        raise HookNeverFired(
            f"{self._plan.canonical}: generate() wrote {written} token(s), but {begun + grown} "
            "forward(s) of the model came by the strategy; it was replaced, or compiled past it. "
            "Use hd.load(model, processor=processor).generate(...)."
        )


@contextmanager
def _own_attribute(model: Any, name: str, value: Any) -> Iterator[None]:
    """Within this block the object has an attribute of its own in place of its class's."""
    own = vars(model)
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if own.get(name) is value:  # else somebody put another one there
            del own[name]
            if before is not None:
                own[name] = before


@contextmanager
def _attention_kept(model: Any, needed: bool) -> Iterator[None]:
    """As `attention_set`; the model's lock is held at both ends, not in between."""
    switched = attention_set(model, needed)
    switched.__enter__()
    try:
        yield
    finally:
        with lock_of(model):
            switched.__exit__(None, None, None)


def _prompt_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `generate` was asked to continue, int64 [B, T]."""
    given = (kwargs.get("input_ids"), kwargs.get("inputs"), args[0] if args else None)
    return next((ids for ids in given if ids is not None), None)


def _refusing(what: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedStrategy(
            f"{what} packs many answers into one forward, which a strategy cannot follow; use "
            "model.generate(...), or hd.load(model, processor=processor).generate([...])."
        )

    return refuse
