"""In a worker: what happens inside one forward: attention edits, steering, early layers, captures.

Hooks on the decoder's layers and attention (see `hooks`) call it; each forward has an
`WorkerForward` made from the step's `StepBatch`. Without one, as in vLLM's own dummy runs, they do
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from halludecode.core.errors import HookNeverFired
from halludecode.core.residual import ResidualStream
from halludecode.core.tracing import TracedStrategy
from halludecode.engines.vllm.worker import attention
from halludecode.engines.vllm.worker.capture import keep_attention, keep_hidden
from halludecode.engines.vllm.worker.captured import Captured
from halludecode.engines.vllm.worker.edit_batch import EditBatch, acting, edit_batches
from halludecode.engines.vllm.worker.state import WorkerState
from halludecode.engines.vllm.worker.step_batch import StepBatch

Decode = Callable[[Tensor, bool], Tensor]


class WorkerForward:
    """One forward.

    Args:
        view: Our rows of the step.
        desk: Plans and notes.
        checked: See `attention.Checked`; lives as long as the worker.
        decode: ``([.., D], norm) -> float32 [.., V]``.
    """

    def __init__(
        self, view: StepBatch, desk: WorkerState, checked: attention.Checked, decode: Decode
    ) -> None:
        self.view, self.desk, self.decode = view, desk, decode
        self.edit_batches = edit_batches(view, desk)
        self.captures = [
            (row, desk.captured.setdefault(row.metadata.group, Captured()))
            for rows in view.groups.values()
            for row in rows.values()
            if row.metadata.capture
        ]
        self.early: dict[tuple[str, int], Tensor] = {}  # (group, layer) -> [D]
        self._checked = checked
        self._inputs: dict[int, Tensor] = {}
        parts = [part for unit in self.edit_batches for part in unit.plan.parts]
        self._reads = _layers(parts, lambda p: "token_mask" in p.verbs or p.steers)
        self._decodes = frozenset(n for part in parts for n in part.early)
        self._edits = _layers(parts, lambda p: p.phase is not None)
        self._steers = {
            site: _layers(parts, lambda p, s=site: p.steers and p.strategy.site == s)
            for site in ("residual", "mlp")
        }

    def layer_input(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """The residual entering a layer, in vLLM's two parts [tokens, D]."""
        if layer not in self._reads and layer not in self._decodes:
            return
        x = hidden if residual is None else hidden + residual
        self._inputs[layer] = x
        if layer in self._decodes:
            for rows in self.view.sampling():
                main = rows["main"]
                self.early[main.metadata.group, layer] = x[main.first + main.stop - main.start - 1]

    def layer_output(
        self, layer: int, hidden: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The residual leaving a layer; what stands in its place, or None."""
        inp = self._inputs.pop(layer, None)
        for row, kept in self.captures:
            if row.metadata.capture and layer in row.metadata.capture["hidden"]:
                keep_hidden(row, kept, layer, hidden + residual)
        if layer not in self._steers["residual"] or inp is None:
            return None
        x = hidden + residual
        new = self._steer("residual", layer, x, inp)
        return new, torch.zeros_like(new)

    def mlp_output(self, layer: int, x: Tensor, inp: Tensor) -> Tensor | None:
        """What an MLP puts out; what stands in its place, or None."""
        if layer not in self._steers["mlp"]:
            return None
        return self._steer("mlp", layer, x, inp)

    def attention(self, layer: attention.Layer) -> None:
        """Edit one layer's attention output in place."""
        for row, kept in self.captures:
            try:
                keep_attention(row, kept, layer)
            except Exception as error:
                self.desk.record(row.metadata.group).fail(error, "reading attention")
        if layer.number not in self._edits:
            return
        layer.x = self._inputs.get(layer.number)
        for unit in self.edit_batches:
            self._guard(unit, lambda u=unit: attention.edit(layer, u, self._checked))

    def finish(self) -> None:
        """After the forward: note what changed, and that every declared hook was called."""
        for unit in self.edit_batches:
            if unit.changed is not None:
                for r, note in enumerate(unit.notes):
                    note.changed.append((unit.changed, r))
            if unit.emits():
                self._guard(unit, lambda u=unit: self._check_fired(u))

    def early_of(self, groups: Sequence[str], layer: int) -> Tensor:
        """[B, D]: residuals entering a layer, of groups that draw a token in this step.

        Raises:
            HookNeverFired: The layer never showed them.
        """
        if any((group, layer) not in self.early for group in groups):
            raise HookNeverFired(
                f"The residual entering layer {layer} was never seen, so its early scores are "
                "unknown; this vLLM model did not reach halludecode's hooks (report it with "
                "`halludecode doctor`)."
            )
        return torch.stack([self.early[group, layer] for group in groups])

    def _check_fired(self, unit: EditBatch) -> None:
        for i, part in enumerate(unit.plan.parts):
            for hook, declared in (("attend", part.phase is not None), ("steer", part.steers)):
                fired = unit.notes[0].fired
                silent = [n for n in sorted(part.layers) if (hook, i, n) not in fired]
                if declared and silent:
                    raise HookNeverFired(
                        f"{part.strategy.name}.{hook} was not called in layer(s) {silent} during "
                        "the first forward pass, so the strategy was off; this vLLM model did not "
                        "reach halludecode's hooks (report it with `halludecode doctor`)."
                    )

    def _steer(self, site: str, layer: int, x: Tensor, inp: Tensor) -> Tensor:
        out = x.clone()
        for unit in self.edit_batches:
            for i, part in acting(unit.plan, unit.plan.steering):
                if part.strategy.site == site and layer in part.layers:
                    self._guard(
                        unit, lambda u=unit, i=i, p=part: self._steer_unit(u, i, p, layer, out, inp)
                    )
        return out

    def _steer_unit(
        self, unit: EditBatch, i: int, part: TracedStrategy, layer: int, out: Tensor, inp: Tensor
    ) -> None:
        names = unit.names(i)
        for name in part.strategy.steer_rows:
            row = names.get(name)
            if row is None:
                continue
            at = unit.flat(row, out.device)
            old = out[at]
            hidden = ResidualStream(
                layer,
                part.model_info,
                name,
                old,
                inp[at],
                lambda last: self.decode(last, True),
                unit.states[i],
                unit.carry[i],
            )
            keys = unit.keys(row, 0, unit.width(row), out.device)
            chosen = keys.queries(part.strategy.steer_at)
            new = part.strategy.steer(hidden).to(out.dtype).where(chosen[..., None], old)
            unit.note_change((new != old).flatten(1).any(-1))
            out[at] = new
        unit.fire("steer", i, layer)

    def _guard(self, unit: EditBatch, act: Callable[[], None]) -> None:
        """What fails in one unit ends its requests alone, with a sentence."""
        if unit.dead:
            return
        try:
            act()
        except Exception as error:
            unit.dead = True
            for note in unit.notes:
                note.fail(error, unit.plan.canonical)


def _layers(
    parts: Sequence[TracedStrategy], wanted: Callable[[TracedStrategy], Any]
) -> frozenset[int]:
    return frozenset(n for part in parts if wanted(part) for n in part.layers)
