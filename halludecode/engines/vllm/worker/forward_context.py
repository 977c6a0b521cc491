"""In a worker: what happens inside one forward: attention edits, steering, early layers, captures.

Hooks on the decoder's layers and attention (see `hooks`) call it; each forward has an
`WorkerForward` made from the step's `StepBatch`. Without one, as in vLLM's own dummy runs, they do
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halludecode.core.errors import HookNeverFired
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.layer_edits import check_fired, never_called, steer
from halludecode.engines.vllm.worker import attention
from halludecode.engines.vllm.worker.capture import keep_attention, keep_hidden
from halludecode.engines.vllm.worker.captured import Captured
from halludecode.engines.vllm.worker.edit_batch import EditBatch, acting, edit_batches
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import Rows, StepBatch, labels
from halludecode.models.feed_forward import Branch, Branched

MODEL = "this vLLM model"  # what sentences call it
Decode = Callable[[Tensor, bool], Tensor]
OfBranch = Callable[[Branch, float, float, bool], Tensor]


class WorkerForward:
    """One forward.

    Args:
        step: Our rows of the step.
        worker_state: Plans and records.
        checked: See `attention.Checked`; lives as long as the worker.
        decode: ``([.., D], norm) -> float32 [.., V]``.
        branched: ``(branch, residual, last, normed) -> float32 [B, V]``, see
            `models.feed_forward.branch_logits`.
    """

    def __init__(
        self,
        step: StepBatch,
        worker_state: WorkerState,
        checked: attention.Checked,
        decode: Decode,
        branched: OfBranch,
    ) -> None:
        self.branched = branched
        self.step, self.worker_state, self.decode = step, worker_state, decode
        self.edit_batches = edit_batches(step, worker_state)
        self.captures = [
            (row, worker_state.captured.setdefault(row.metadata.group, Captured()))
            for rows in step.groups.values()
            for row in rows.values()
            if row.metadata.capture
        ]
        self.early: dict[tuple[str, str, int], Tensor] = {}  # (group, row, layer) -> [D]
        self._checked = checked
        self._inputs: dict[int, Tensor] = {}
        parts = [part for batch in self.edit_batches for part in batch.plan.parts]
        self._reads = _layers(parts, lambda p: "token_mask" in p.verbs or p.steers)
        self._last = max((p.model_info.num_layers - 1 for p in parts if p.branches_off), default=-1)
        self._decodes = frozenset(n for part in parts for n in part.early) | {self._last}
        self._done = False
        self._reached: set[tuple[str, int]] = set()  # sites and layers, see `_check_reached`
        self._shows_pictures = any("image_features" in part.stream_reads for part in parts)
        self._edits = _layers(parts, lambda p: p.phase is not None)
        self._steers = {
            site: _layers(parts, lambda p, s=site: p.steers and p.strategy.site == s)
            for site in ("residual", "mlp")
        }

    def layer_input(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """The residual entering a layer, in vLLM's two parts [tokens, D]."""
        shows = layer == 0 and self._shows_pictures
        if layer not in self._reads and layer not in self._decodes and not shows:
            return
        x = hidden if residual is None else hidden + residual
        self._inputs[layer] = x
        if shows:
            for batch in self.edit_batches:
                self._guard(batch, lambda b=batch: b.keep_pictures(x))
        if layer in self._decodes:
            self._keep_early(layer, x)

    def _keep_early(self, layer: int, x: Tensor) -> None:
        """[tokens, D]: of every row that draws a token in this step, its last one's."""
        for rows in self.step.sampling():
            for name, row in rows.items():
                last = row.first + row.stop - row.start - 1
                self.early[row.metadata.group, name, layer] = x[last]

    def layer_output(
        self, layer: int, hidden: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The residual leaving a layer; what stands in its place, or None."""
        inp = self._inputs.pop(layer, None)
        for row, kept in self.captures:
            if row.metadata.capture and layer in row.metadata.capture["hidden"]:
                keep_hidden(row, kept, layer, hidden + residual)
        steers = layer in self._steers["residual"] and inp is not None
        if not steers and layer != self._last:
            return None
        x = hidden + residual
        new = self._steer("residual", layer, x, inp) if steers else x
        if layer == self._last:
            self._keep_early(layer + 1, new)
        return (new, torch.zeros_like(new)) if steers else None

    def mlp_output(self, layer: int, x: Tensor, inp: Tensor) -> Tensor | None:
        """What an MLP puts out; what stands in its place, or None."""
        if self._done or layer not in self._steers["mlp"]:
            return None
        return self._steer("mlp", layer, x, inp)

    def attention(self, layer: attention.Layer) -> None:
        """Edit one layer's attention output in place."""
        self._reached.add(("attention", layer.number))
        for row, kept in self.captures:
            try:
                keep_attention(row, kept, layer)
            except Exception as error:
                self.worker_state.record(row.metadata.group).fail(error, "reading attention")
        if layer.number not in self._edits:
            return
        layer.x = self._inputs.get(layer.number)
        for batch in self.edit_batches:
            self._guard(batch, lambda b=batch: attention.edit(layer, b, self._checked))

    def finish(self) -> None:
        """After the forward: note what changed, and that every declared hook was called."""
        self._done = True
        for batch in self.edit_batches:
            if batch.changed is not None:
                for r, record in enumerate(batch.records):
                    record.changed.append((batch.changed, r))
            if batch.emits():
                given = (list(enumerate(batch.plan.parts)), batch.records[0].fired, MODEL)
                self._guard(batch, lambda given=given: check_fired(*given))
            self._guard(batch, lambda b=batch: self._check_reached(b))

    def _check_reached(self, batch: EditBatch) -> None:
        """Whether this forward called us where its edits are; one that is replayed would not."""
        for part in batch.plan.parts:
            for hook, site, is_on in (
                ("attend", "attention", part.phase is not None),
                ("steer", part.strategy.site, part.steers),
            ):
                silent = [n for n in sorted(part.layers) if (site, n) not in self._reached]
                if is_on and silent:
                    raise HookNeverFired(never_called(part.strategy.name, hook, silent, MODEL))

    def early_of(
        self, i: int, part: TracedStrategy, groups: Sequence[Rows], present: Collection[str]
    ) -> dict[str, dict[int, Tensor]]:
        """By row and layer, [B, D]: residuals that part ``i`` of some groups' plan may decode.

        Args:
            i: The part's place.
            part: The part.
            groups: All draw a token in this step.
            present: Its rows that are here.

        Raises:
            HookNeverFired: A layer never showed them.
        """
        return {
            name: {n: self._early(labels(i, groups, name), n) for n in part.early}
            for name in ("main", *(part.early_rows & {*present}))
        }

    def branch_of(self, i: int, part: TracedStrategy, groups: Sequence[Rows]) -> Branched | None:
        """What `Step.branch` gives part ``i`` of some groups' plan."""
        names = labels(i, groups, "main") if part.branches_off else []
        kept = [self.worker_state.record(group).branched.get(i) for group, _ in names]
        found = [own for own in kept if own is not None]
        if not found or len(found) < len(kept):
            return None
        heads = torch.stack([own[1] for own in found])
        ends = [self._early(names, layer) for layer in (self._last, self._last + 1)]
        return partial(self.branched, (found[0][0], heads, *ends))

    def _early(self, rows: Sequence[tuple[str, str]], layer: int) -> Tensor:
        """[B, D]: residuals entering a layer, of rows (group, name)."""
        if any((*row, layer) not in self.early for row in rows):
            raise HookNeverFired(
                f"The residual entering layer {layer} was never seen, so its early scores are "
                "unknown; this vLLM model did not reach halludecode's hooks (report it with "
                "`halludecode doctor`)."
            )
        return torch.stack([self.early[*row, layer] for row in rows])

    def _steer(self, site: str, layer: int, x: Tensor, inp: Tensor) -> Tensor:
        out = x.clone()
        self._reached.add((site, layer))
        for batch in self.edit_batches:
            for i, part in acting(batch.plan, batch.plan.steering):
                if part.strategy.site == site and layer in part.layers:
                    entering = self._inputs.get(layer)
                    given = (batch, i, part, layer, out, inp, self._decode_last, entering)
                    self._guard(batch, lambda given=given: steer(*given))
        return out

    def _decode_last(self, last: Tensor) -> Tensor:
        return self.decode(last, True)

    def _guard(self, batch: EditBatch, act: Callable[[], None]) -> None:
        """What fails in one batch ends its requests alone, with a sentence."""
        if batch.dead:
            return
        try:
            act()
        except Exception as error:
            batch.dead = True
            for record in batch.records:
                record.fail(error, batch.plan.canonical)


def _layers(
    parts: Sequence[TracedStrategy], wanted: Callable[[TracedStrategy], Any]
) -> frozenset[int]:
    return frozenset(n for part in parts if wanted(part) for n in part.layers)
