"""One strategy of a plan with what tracing found: verbs, rows, layers, activations.

Needs are traced, never typed: every hook runs once on small random tensors, and what it used is
written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from halludecode.core.activations import ActivationRequest
from halludecode.core.attention import SCORE_VERBS, Attention
from halludecode.core.attention_block import IMAGE, SYSTEM, TEXT, AttentionBlock, Queries, RowKeys
from halludecode.core.attention_hooks import Hooks, Trace
from halludecode.core.branch import Branch
from halludecode.core.errors import InvalidParameter
from halludecode.core.hybrid import attended, check_reads
from halludecode.core.model_info import ModelInfo
from halludecode.core.needs import KINDS
from halludecode.core.passes import fake_passes, named
from halludecode.core.prompt import Picture, Prompt, Turn
from halludecode.core.residual import ResidualStream
from halludecode.core.state import State, stack
from halludecode.core.step import Step
from halludecode.core.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE_READS = frozenset(
    {"at_first_token", "keys_at_first_token", "head_outputs", "scores", "weights", "tally"}
)
_PROMPT = frozenset({"all", "after_image", "prompt"})  # queries before the first that emits


@dataclass(frozen=True)
class TracedStrategy:
    """One strategy of a plan with what tracing found."""

    strategy: Strategy
    model_info: ModelInfo
    verbs: frozenset[str] = frozenset()
    attend_rows: tuple[str, ...] = ()
    queries: frozenset[Queries] = frozenset()
    layers: frozenset[int] = frozenset()
    branches: Mapping[str, Branch] = field(default_factory=dict[str, Branch])
    activations: Mapping[str, ActivationRequest] = field(
        default_factory=dict[str, ActivationRequest]
    )
    early: tuple[int, ...] = ()
    reads: frozenset[str] = frozenset()  # rows beside main that `combine` reads
    cut: float | None = None  # share of the mask that is the last thing `combine` does
    reads_state: bool = False  # whether `combine` does
    firsts: frozenset[str] = frozenset()  # rows whose logits of token 1 `combine` reads later, too
    early_rows: frozenset[str] = frozenset()  # rows beside main of which it decodes early layers
    stream_reads: frozenset[str] = frozenset()  # what `steer` reads of `ResidualStream` on top
    other_pictures: bool = False  # whether its main prompt has others than the user's
    decodes: bool = False  # whether `combine` decodes states of its own

    @property
    def steers(self) -> bool:
        """Whether `steer` is overridden."""
        return self.strategy.declares("steer")

    @property
    def in_turn(self) -> bool:
        """Whether passes before the answer depend on earlier ones."""
        return bool(self.activations) and self.strategy.declares("next_activations")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it does by its hooks, of `core.needs.KINDS`; the first is where it is listed."""
        found = {
            "search": self.strategy.declares("search"),
            "steering": self.steers,
            "attention": bool(self.verbs) and "main" in self.attend_rows and not self.branches_off,
            "layers": bool(self.early) or self.branches_off or self.decodes,
            "contrast": bool(self.reads),
        }
        return tuple(kind for kind in KINDS if found.get(kind)) or KINDS[-1:]

    @property
    def phase(self) -> Literal["scores", "outputs"] | None:
        """Whether `attend` needs attention scores, only head outputs, or is not used."""
        if not self.verbs:
            return None
        return "scores" if self.verbs & SCORE_VERBS else "outputs"

    @property
    def whole(self) -> bool:
        """Whether all rows must prefill unchunked in one forward."""
        chosen = self.verbs & _WHOLE_READS and self.queries & _PROMPT
        return bool(chosen or self.verbs & {"received", "paid", "open"} or self.stream_reads)

    @property
    def branches_off(self) -> bool:
        """Whether `attend` carries head outputs past the layers, see `Attention.branch_off`."""
        return "branch_off" in self.verbs

    @property
    def combines(self) -> bool:
        """Whether `combine` is overridden."""
        return self.strategy.declares("combine")

    @property
    def extra(self) -> frozenset[str]:
        """Rows beside main."""
        return frozenset(self.branches) - {"main"}

    @property
    def decides(self) -> str:
        """How its main row can decide a token alone, in words; empty where it never does."""
        import torch

        step = Step({"main": torch.zeros(1, 2)}, torch.ones(1, 1, dtype=torch.long))
        own = self.strategy.decided(step) is not None
        ways = [f"its cut at {self.cut:g} leaves one token"] if self.cut is not None else []
        return " or ".join(ways + ["its own rule says so"] * own)

    @property
    def can_wait(self) -> bool:
        """Whether its extra rows may begin to read when a token first needs them.

        `combine` alone may read them, and what edits them may look at nothing else.
        """
        lasting = all(b.life == "answer" for n, b in self.branches.items() if n in self.extra)
        edited = {*self.attend_rows, *(self.strategy.steer_rows if self.steers else ())}
        apart = edited <= self.extra and not self.verbs & {
            "branch_off",
            "at_first_token",
            "keys_at_first_token",
            "tally",
            "token_mask",
        }
        if self.early_rows or not self.firsts <= {"main"}:
            return False
        return lasting and self.extra <= self.reads and (edited <= {"main"} or apart)

    @property
    def late_activations(self) -> bool:
        """Whether only the extra rows need its passes before the answer."""
        acts = self.attend_rows or self.steers or "main" in self.branches or self.reads_state
        return self.can_wait and not acts and not self.strategy.declares("decided")


@cache
def _probe_prompt(wide: int) -> Prompt:
    from PIL import Image

    picture = Picture.of(Image.new("RGB", (wide, 8), (127, 127, 127)))
    return Prompt((Turn("user", (picture, "What is in the image?")),))


def trace(strategy: Strategy, model_info: ModelInfo) -> TracedStrategy:
    """Run every hook once on small random tensors and write down what it used."""
    # Who looks on, depending on what was seen, must find something to look at; few pixels suffice.
    prompt = _probe_prompt(2048 if strategy.declares("next_activations") else 8)
    requests = named(strategy, "activations", prompt, model_info, kind=ActivationRequest)
    check_reads(strategy, requests, model_info)
    state = strategy.prepare(fake_passes(strategy, prompt, requests, model_info), model_info)
    branches = named(strategy, "branches", prompt, state, model_info, kind=Branch)
    early = tuple(sorted(set(strategy.early(model_info))))
    layers = (
        sorted(set(strategy.layers(model_info)))
        if strategy.declares("attend") or strategy.declares("steer")
        else []
    )
    for numbers in (layers, early):
        if numbers and not 0 <= numbers[0] <= numbers[-1] < model_info.num_layers:
            raise InvalidParameter(
                f"{strategy.name}: layers {list(numbers)} are not within "
                f"0..{model_info.num_layers - 1}."
            )
    if strategy.declares("attend"):
        layers = attended(strategy, layers, model_info)
    used, states, carry = Trace(), stack([state, state]), dict[str, Any]()
    reads = set[str]()
    for layer in layers[:2]:
        if strategy.declares("attend"):
            _trace_attend(strategy, layer, branches, states, model_info, used, carry)
        if strategy.declares("steer"):
            reads |= _trace_steer(strategy, layer, states, model_info)
    steps = list[Step]()
    cuts = {cast("float | None", None)}
    if strategy.declares("combine"):
        steps, cuts = _trace_combine(strategy, branches, states, early, model_info)
    return TracedStrategy(
        strategy,
        model_info,
        frozenset(used.verbs),
        tuple(sorted(used.rows)),
        frozenset(used.queries),
        frozenset(layers),
        branches,
        requests,
        early,
        frozenset[str]().union(*(step.reads for step in steps)),
        next(iter(cuts)) if len(cuts) == 1 else None,
        any(step.reads_state for step in steps),
        frozenset[str]().union(*(step.firsts for step in steps)),
        frozenset[str]().union(*(step.early_rows for step in steps)),
        frozenset(reads),
        "main" in branches and branches["main"].prompt.pictures != prompt.pictures,
        any(step.decodes for step in steps),
    )


def _trace_steer(strategy: Strategy, layer: int, state: State, model_info: ModelInfo) -> set[str]:
    """Run `steer` on random tensors, so that a wrong shape shows before any token.

    Returns:
        What it read on top of the stream.
    """
    import torch

    rng = torch.Generator().manual_seed(layer)
    x, inp = torch.randn(2, 2, 3, model_info.hidden_size, generator=rng)

    def decode(last: Tensor) -> Tensor:
        return last.new_zeros(len(last), model_info.vocab_size)

    stream = ResidualStream(layer, model_info, "main", x, inp, decode, state)
    stream.chosen = torch.ones(x.shape[:2], dtype=torch.bool)
    stream.pictures, stream.pictured = lambda: list(x), torch.ones(len(x), dtype=torch.bool)
    steered: Any = strategy.steer(stream)
    shape = getattr(steered, "shape", None)
    if shape != x.shape:
        gave = type(steered).__name__ if shape is None else list(shape)
        raise InvalidParameter(
            f"{strategy.name}.steer gave {gave} for a stream of {list(x.shape)}; "
            "the shape must be kept."
        )
    return stream.reads


def _trace_combine(
    strategy: Strategy,
    branches: Mapping[str, Branch],
    states: State,
    early: tuple[int, ...],
    model_info: ModelInfo,
) -> tuple[list[Step], set[float | None]]:
    """Run `combine` on random logits, so that a missing row or a wrong shape shows at once.

    Where rows live only until the first token, later tokens are tried without them.

    Returns:
        What was read, and at which shares the result was masked last of all.
    """
    import torch

    rng = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they were
    requests, vocab = 2, model_info.vocab_size

    def decode(x: Tensor, norm: bool, tokens: Tensor | None = None) -> Tensor:
        width = vocab if tokens is None else len(tokens)
        return torch.randn(*x.shape[:-1], width, generator=rng)

    rows = {name: torch.randn(requests, vocab, generator=rng) for name in {"main": 0, **branches}}
    brief = {name for name, branch in branches.items() if branch.life == "prefill"} - {"main"}

    def entering() -> dict[int, Tensor]:
        shape = (requests, model_info.hidden_size)
        return {layer: torch.randn(shape, generator=rng) for layer in early}

    residuals, beside = entering(), {name: entering() for name in rows}
    steps, cuts = list[Step](), set[float | None]()
    for token, gone in ((1, set[str]()), (2, brief), (50, brief)):
        step = Step(
            {name: logits * token for name, logits in rows.items() if name not in gone},
            torch.full((requests, 1), token),
            states,
            decode,
            residuals,
            beside={name: own for name, own in beside.items() if name not in gone | {"main"}},
            branch=lambda residual, last, normed: torch.randn(requests, vocab, generator=rng),
            first=rows,
            owner=strategy.name,
        )
        scores: Any = strategy.combine(step)
        shape = getattr(scores, "shape", None)
        if shape is None or tuple(shape) != (requests, vocab):
            gave = f"{type(scores).__name__}" if shape is None else f"shape {list(shape)}"
            raise InvalidParameter(
                f"{strategy.name}.combine gave {gave} for {requests} requests of {vocab} tokens; "
                f'it must give scores of shape {[requests, vocab]}, those of step["main"].'
            )
        steps.append(step)
        beta, masked = step.cuts[-1] if step.cuts else (0, None)
        cuts.add(beta if beta > 0 and masked is scores else None)
    return steps, cuts


def _trace_attend(
    strategy: Strategy,
    layer: int,
    branches: Mapping[str, Branch],
    state: State,
    model_info: ModelInfo,
    trace: Trace,
    carry: dict[str, Any],
) -> None:
    import torch

    rng = torch.Generator().manual_seed(layer)

    def token_mask(name: str, fn: Any, row: str) -> Tensor:
        kind = blocks[row].keys.kind
        marked = fn(torch.randn(kind.numel(), model_info.hidden_size, generator=rng))
        return marked.reshape(kind.shape).bool()

    blocks = {"main": _fake_block(model_info, image=True, rng=rng)}
    for name, branch in branches.items():
        blocks[name] = _fake_block(model_info, image=bool(branch.prompt.pictures), rng=rng)
    hooks = Hooks(
        token_mask=token_mask,
        at_first_token=lambda name, fn: fn(),
        state=state,
        carry=carry,
        trace=trace,
        received=lambda own, of: blocks["main"].received(own=own, of=of),
        paid=lambda seg: blocks["main"].paid(seg),
        confidence=lambda: torch.ones(blocks["main"].keys.position.shape),
        keys_at_first_token=lambda name, fn: fn(),
        branch=lambda heads: None,
        tally=lambda name, x, mine: x,
    )
    strategy.attend(Attention(layer, model_info, blocks, hooks, strategy.name))


def _fake_block(model_info: ModelInfo, *, image: bool, rng: Any) -> AttentionBlock:
    import torch

    kinds = [SYSTEM, *[IMAGE] * 4, TEXT, TEXT] if image else [SYSTEM] * 7
    kind = torch.tensor([kinds] * 2, dtype=torch.int8)
    n = kind.shape[1]
    keys = RowKeys(
        kind,
        torch.where(kind == IMAGE, 0, -1).to(torch.int16),
        torch.arange(n).expand(2, n),
        kind,
        torch.tensor([n, n]),
    )
    shape = (2, model_info.num_heads, n, model_info.head_dim)
    q, k, v, base = (torch.randn(shape, generator=rng) for _ in range(4))
    return AttentionBlock(keys, q, k, v, torch.ones(n, n, dtype=torch.bool).tril(), 0.5, base)
