"""What `combine` sees when one token is chosen.

Shapes: B requests, V vocabulary size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from halludecode.core import logits as hd_math
from halludecode.core.errors import HookNeverFired, InvalidScores, UnsupportedStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.strategy import Strategy
    from halludecode.core.tracing import TracedStrategy

CACHED = 1 << 18  # logits of a megabyte


class Step:
    """Logits of a strategy's rows for the token being chosen.

    ``step["main"]`` and ``step["noised"]`` are the raw logits of a row as its forward gave them,
    float32 [B, V]; "main" is the same for every strategy of a composition.

    Args:
        logits: Row name (local to the strategy) -> float32 [B, V].
        t: int64 [B, 1], 1 for the first emitted token; requests of a batch may differ.
        state: What `prepare` returned, stacked to [B, ...].
        decode: ``([.., D], norm, tokens=None) -> float32 [.., V]``, the model's LM head; of tokens
            int64 [K] alone [.., K].
        residuals: The main row's residual [B, D] entering each of the strategy's `early` layers.
        beside: The same of other rows, or of all, by their names.
        branch: ``(residual, last, normed) -> float32 [B, V]``, what `branch` gives.
        first: What `first` gives, by row; None at token 1, where it is ``logits``.
        masking: False while the engine asks for unmasked scores (the yes/no margin of a first
            step).
        owner: The strategy's name, for messages.

    Attributes:
        reads: While compiling: rows other than main that were read.
        cuts: While compiling: every `plausible` call's share and what it gave.
        firsts: While compiling: rows that `first` was asked for.
        early_rows: While compiling: rows other than main that `early` was asked for.
        reads_state: While compiling: whether `state` was asked for.
        decodes: While compiling: whether `decode` was.
    """

    def __init__(
        self,
        logits: Mapping[str, Tensor],
        t: Tensor,
        state: Mapping[str, Any] | None = None,
        decode: Callable[..., Tensor] | None = None,
        residuals: Mapping[int, Tensor] | None = None,
        *,
        beside: Mapping[str, Mapping[int, Tensor]] | None = None,
        branch: Callable[[float, float, bool], Tensor] | None = None,
        first: Mapping[str, Tensor] | None = None,
        masking: bool = True,
        owner: str = "",
    ) -> None:
        self._logits = logits
        self.t = t
        self._state = state or {}
        self._decode = decode
        self._residuals = {"main": residuals or {}, **(beside or {})}
        self._branch = branch
        self._first = logits if first is None else first
        self._early: dict[tuple[str, bool], Tensor] = {}
        self._masking = masking
        self._owner = owner
        self.reads: set[str] = set()
        self.cuts: list[tuple[float, Tensor]] = []
        self.firsts: set[str] = set()
        self.early_rows: set[str] = set()
        self.reads_state = self.decodes = False

    @property
    def state(self) -> Mapping[str, Any]:
        """What `prepare` returned, stacked to [B, ...]."""
        self.reads_state = True
        return self._state

    def __getitem__(self, row: str) -> Tensor:
        if row not in self._logits:
            raise UnsupportedStrategy(
                f"{self._owner or 'A strategy'}.combine reads row {row!r}; at this token it has "
                f'{", ".join(self._logits)} (a row with life="prefill" is gone after the first).'
            )
        if row == "main":
            return self._logits[row]
        self.reads.add(row)
        return hd_math.unban(self._logits[row], self._logits["main"])

    def first(self, row: str = "main") -> Tensor:
        """float32 [B, V]: a row's logits for token 1 of the answer, before any token was banned.

        A row beside main that is asked for here runs from token 1 on: it never waits.
        """
        self.firsts.add(row)
        if row not in self._first:
            raise UnsupportedStrategy(f"{self._owner}.combine: no row {row!r} wrote token 1.")
        return self._first[row]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the strategy's rows at this token, the main one among them."""
        return tuple(self._logits)

    @property
    def masks(self) -> bool:
        """Whether implausible tokens are banned; not where a word's score is asked for."""
        return self._masking

    @property
    def layers(self) -> tuple[int, ...]:
        """The strategy's `early` layers."""
        return tuple(self._residuals["main"])

    def early(self, layer: int, *, norm: bool = False, row: str = "main") -> Tensor:
        """float32 [B, V]: the LM head on a row's residual entering a layer.

        All layers of a row are decoded at the first call, in one product, so the head is read once.
        A row beside main that is asked for here runs from token 1 on: it never waits.

        Args:
            layer: One of the strategy's `early` layers.
            norm: Whether the model's final norm comes before the head.
            row: Whose; local to the strategy.

        Raises:
            HookNeverFired: The strategy did not declare it.
        """
        import torch

        if row != "main":
            self.early_rows.add(row)
        residuals = self._residuals.get(row, {})
        if self._decode is None or layer not in residuals:
            of = "" if row == "main" else f" of row {row!r}"
            raise HookNeverFired(
                f"combine asked for layer {layer}{of}, which early() does not name."
            )
        if (row, norm) not in self._early:
            self._early[row, norm] = self._decode(torch.stack(list(residuals.values())), norm)
        return self._early[row, norm][list(residuals).index(layer)]

    def decode(self, states: Tensor, tokens: Tensor) -> Tensor:
        """float32 [.., K]: what states [.., D] that leave the last layer would say of K tokens.

        The final norm is included. Only the tokens' rows of the LM head are read, so that many
        states can be asked about a few tokens.

        Args:
            states: Of any dtype and device; such as those of an `ActivationRequest`.
            tokens: int64 [K].
        """
        self.decodes = True
        if self._decode is None:
            raise HookNeverFired(f"{self._owner}.combine decodes states, and has no LM head here.")
        return self._decode(states, True, tokens)

    def branch(self, residual: float, last: float, *, normed: bool = False) -> Tensor:
        r"""float32 [B, V]: logits of what `Attention.branch_off` carried past the layers.

        .. math:: head(n(h + FFN(n'(h))) + last \, n(x_L)), \qquad
           h = W_O\, heads + residual \, x_{L-1}

        n' and FFN are the last layer's, n the model's final norm, x_{L-1} what enters the last
        layer and x_L what leaves it; ``normed`` puts the last layer's input norm before the sum h.

        Raises:
            HookNeverFired: Nothing was branched off in the forward.
        """
        if self._branch is None:
            raise HookNeverFired(
                f"{self._owner}.combine asked for a branch that attend never made."
            )
        return self._branch(residual, last, normed)

    def early_blocks(
        self, requests: Tensor, *, norm: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All `early` layers decoded for some requests, in one product, shown a few at a time.

        Args:
            requests: int64 [k].
            norm: As in `early`.

        Yields:
            int64 [b] of the requests, and float32 [L, b, V]: on a processor as many as its cache
            holds a layer of, so that what is made of them is not written to memory and read again.
        """
        import torch

        if self._decode is None or not self._residuals["main"]:
            raise HookNeverFired("combine asked for layers, and early() names none.")
        entering = torch.stack(list(self._residuals["main"].values()))
        logits = self._decode(entering[:, requests], norm)
        few = CACHED // logits.shape[-1] if logits.device.type == "cpu" else len(requests)
        for at in range(0, len(requests), max(few, 1)):
            yield requests[at : at + max(few, 1)], logits[:, at : at + max(few, 1)]

    def undecided(self, beta: float) -> Tensor:
        """int64 [k]: requests of which `plausible` at this share keeps more than one token.

        All of them where nothing is masked, and off the processor, which would be waited for.
        """
        import torch

        main = self["main"]
        if not self._masking or beta <= 0 or main.device.type != "cpu":
            return torch.arange(len(main), device=main.device)
        return (~hd_math.alone(main, beta)).nonzero()[:, 0]

    def plausible(self, scores: Tensor, beta: float) -> Tensor:
        """``scores`` with tokens implausible under the main row banned, see `core.logits`."""
        if not self._masking:
            return scores
        masked = hd_math.plausible(scores, like=self["main"], beta=beta)
        self.cuts.append((beta, masked))
        return masked

    def among(self, scores: Tensor, candidates: Tensor) -> Tensor:
        """``scores`` with all tokens but the candidates (bool [B, V]) banned, like `plausible`."""
        return scores.masked_fill(~candidates, hd_math.NEG_INF) if self._masking else scores


def decided(parts: Sequence[tuple[TracedStrategy, Step]], main: Tensor) -> Tensor:
    """Bool [B]: requests whose next token is the same whatever the rows beside main hold.

    Every cut keeps the main row's best token, so where one part leaves it alone, all parts are
    decided; else each has to be.

    Args:
        parts: Those that override `combine`, each with a step that has its main row.
        main: Raw logits of the main row, float32 [B, V].
    """
    alone = main.new_zeros(len(main)).bool()
    each = ~alone
    for part, step in parts:
        own = part.strategy.decided(step)
        if own is None:
            own = alone if part.reads else ~alone
        if part.cut is not None:
            lone = hd_math.alone(main, part.cut)
            alone, own = alone | lone, own | lone
        each = each & own
    return alone | each


@dataclass(frozen=True)
class Combined:
    """What a composition gave for one token.

    Args:
        scores: float32 [B, V]; the main row's logits where they are broken or there is no picture.
        broken: bool [1 + parts, B]: whose scores cannot be drawn from, not numbers or all -inf: the
            main row's under every edit of the forward, then each part's. None where nothing acts.
        names: Of whom ``broken`` speaks.
    """

    scores: Tensor
    broken: Tensor | None = None
    names: tuple[str, ...] = ()

    def error(self, request: int) -> InvalidScores | None:
        """What is wrong with one request's scores; waits for their device."""
        if self.broken is None:
            return None
        flags = cast("list[bool]", self.broken[:, request].tolist())  # pyright: ignore
        name = next((n for n, broken in zip(self.names, flags, strict=True) if broken), None)
        return None if name is None else broken_scores(name)

    def check(self) -> Tensor:
        """The scores; waits for their device.

        Raises:
            InvalidScores: Those of a request cannot be drawn from.
        """
        if self.broken is not None and bool(self.broken.any()):
            for request in range(self.broken.shape[1]):
                if error := self.error(request):
                    raise error
        return self.scores


def broken_scores(name: str) -> InvalidScores:
    """The error of a strategy whose scores cannot be drawn from."""
    return InvalidScores(
        f"{name}: its scores are not numbers, or ban every token, so that none can be chosen; "
        "mend the strategy, or use other parameters."
    )


def combine(
    parts: list[tuple[Strategy, Step]],
    main: Tensor,
    pictured: Tensor | None = None,
    acting: Sequence[str] = (),
) -> Combined:
    """Scores of a composition: each part's `combine`, then increments summed and masks intersected.

    Args:
        parts: Strategies that override `combine`, each with its step.
        main: Raw logits of the main row, float32 [B, V]; a token banned there stays banned.
        pictured: bool [B], requests with a picture; without one no strategy acts. None: all.
        acting: Names of all strategies of the plan, those that only edit the forward included.

    Raises:
        InvalidScores: A part's are not one number per token.
    """
    import torch

    if not parts and not acting:
        return Combined(main)
    by_part = [_checked(strategy.name, strategy.combine(step), main) for strategy, step in parts]
    if by_part and not hd_math.unbanned(main):  # what is banned stays so, whatever is said of it
        banned = main == hd_math.NEG_INF
        by_part = [scores.masked_fill(banned, hd_math.NEG_INF) for scores in by_part]
    scores = hd_math.compose(main, by_part)
    whole = "+".join(acting) or "+".join(strategy.name for strategy, _ in parts)
    judged = [main, *by_part, *([scores] if len(by_part) > 1 else [])]
    names = (whole, *(strategy.name for strategy, _ in parts), whole)[: len(judged)]
    broken = torch.stack([~each.amax(-1).isfinite() for each in judged])
    acts = ~broken.any(0)
    if pictured is not None:
        broken, acts = broken & pictured, acts & pictured
    if main.device.type != "cpu" or not bool(acts.all()):  # else a copy for nothing
        scores = scores.where(acts[:, None], main)
    return Combined(scores, broken, names)


def _checked(name: str, scores: Any, main: Tensor) -> Tensor:
    """A part's scores, in float32.

    Raises:
        InvalidScores: Of another shape or type.
    """
    shape = getattr(scores, "shape", None)
    if shape != main.shape or not scores.is_floating_point():
        got = f"{scores.dtype} {list(shape)}" if shape is not None else type(scores).__name__
        raise InvalidScores(
            f"{name}: combine must give one float per token, {list(main.shape)}, not {got}; mend "
            "the strategy."
        )
    return scores.float()
