"""In a worker: what keeps a compiled and captured model from leaving us out.

vLLM keeps compiled models on disk under a digest of its options, of which ours are none: without
`salt` it could take a model that it compiled before and that has no operations of ours. On a GPU it
also captures CUDA graphs. Their replay runs no Python: neither our operations in the compiled
model, nor, in a graph of the whole model, attention, where vLLM otherwise cuts its graphs. So each
step is run by graphs that leave out nothing that acts in it (`hold_back`): all of them where rows
are combined by their logits or nobody asks for a strategy, those between attention layers under
attention edits, and none, the compiled model alone, where the residual is read or rewritten.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from halludecode.core.errors import HalluDecodeError
from halludecode.core.plan import Plan
from halludecode.core.tracing import TracedStrategy

NAME = "halludecode"  # of our entry in vLLM's additional options
Modes = frozenset[str]  # names of vLLM's CUDAGraphMode
NONE: Modes = frozenset()
WHOLE: Modes = frozenset({"FULL"})
ALL: Modes = frozenset({"FULL", "PIECEWISE"})


def salt(config: Any) -> None:
    """Have vLLM compile a model of its own for us, and find it again; before it is compiled.

    Args:
        config: vLLM's; its compile cache is named after a digest that covers additional options.

    Raises:
        HalluDecodeError: They are an object of somebody else's that cannot take ours.
    """
    given, made = config.additional_config, digest()
    if not isinstance(given, dict):
        raise HalluDecodeError(
            f"additional_config= is a {type(given).__name__}, to which halludecode cannot add what "
            "tells its compiled models from vLLM's; give a dict."
        )
    config.additional_config = {**given, NAME: made}
    folder = config.compilation_config.cache_dir
    if folder and Path(folder).name != made:  # a folder that is given is taken as it is
        config.compilation_config.cache_dir = str(Path(folder) / made)


def digest() -> str:
    """Of what is put into a model: these operations, and the hooks that leave them there."""
    source = files(__package__).joinpath("hooks.py").read_bytes()
    return hashlib.sha256(source).hexdigest()[:16]


def left_out(plan: Plan | None, captured: bool) -> Modes:
    """CUDA graphs that would leave out what acts on a row.

    Args:
        plan: Of the row's request.
        captured: Whether its activations are read.
    """
    parts = plan.acting if plan else ()
    if captured or any(reads_residual(part) for part in parts):
        return ALL
    return WHOLE if any(part.phase is not None for part in parts) else NONE


def reads_residual(part: TracedStrategy) -> bool:
    """Whether operations between layers serve it, and not those in attention alone."""
    shown = part.steers or part.early or part.stream_reads or "token_mask" in part.verbs
    return bool(shown or part.branches_off)


def hold_back(runner: Any) -> None:
    """Have a runner V1 choose a step's graphs among those that leave out nothing of it.

    Args:
        runner: Ours; its dispatcher is asked once its batch of the step stands.
    """
    from vllm.config import CUDAGraphMode

    dispatcher = runner.cudagraph_dispatcher
    cls = type(dispatcher)

    def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = _held(runner, self.cudagraph_mode)
        if out:
            valid = kwargs.get("valid_modes") or CUDAGraphMode.valid_runtime_modes()
            left = frozenset(mode for mode in valid if mode.name not in out)
            kwargs["valid_modes"] = left or frozenset({CUDAGraphMode.NONE})
        return cls.dispatch(self, *args, **kwargs)

    dispatcher.__class__ = type("Hallu" + cls.__name__, (cls,), {"dispatch": dispatch})


def hold_back_v2(runner: Any) -> None:
    """The same on a runner V2, whose graphs are managed by an object that it makes later on.

    Args:
        runner: Ours; it has added the requests of the step before it asks for a graph.
    """
    from vllm.config import CUDAGraphMode

    manager = runner.cudagraph_manager
    if manager is None or hasattr(manager, "hd_runner"):
        return
    cls = type(manager)

    def dispatch(
        self: Any, num_reqs: int, num_tokens: int, uniform_token_count: Any, *args: Any, **more: Any
    ) -> Any:
        out = _held(runner, self.cudagraph_mode)
        if out and runner.dp_size > 1:
            out = ALL  # replicas agree on running without graphs, not on which graphs
        found = cls.dispatch(self, num_reqs, num_tokens, uniform_token_count, *args, **more)
        if found.cg_mode.name in out:  # pieces take any batch, graphs of all layers a uniform one
            more.pop("max_query_len", None)
            found = cls.dispatch(self, num_reqs, num_tokens, None, *args, **more)
        if found.cg_mode.name in out:
            plain = {"uniform_token_count": None, "max_query_len": None, "num_reqs": num_reqs}
            found = replace(found, cg_mode=CUDAGraphMode.NONE, num_tokens=num_tokens, **plain)
        return found

    manager.__class__ = type("Hallu" + cls.__name__, (cls,), {"dispatch": dispatch})
    manager.hd_runner = runner


def _held(runner: Any, mode: Any) -> Modes:
    """Nothing where there are no graphs: what acts need not be looked at."""
    return NONE if mode is None or mode.name == "NONE" else runner.hd_left_out()
