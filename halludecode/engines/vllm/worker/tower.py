"""In a worker: pictures whose row edits the vision tower itself, encoded apart from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from halludecode.core.branch import TowerEdit
from halludecode.core.errors import UnsupportedStrategy
from halludecode.engines.vllm.row_metadata import RowMetadata
from halludecode.engines.vllm.worker.capture import tower_attention
from halludecode.models.tower_edit import call, followed, hooked

Pictures = dict[str, list[int]]  # vLLM's request id -> its pictures


def encoded(runner: Any, step: Any, encode: Callable[[Any], Any]) -> list[Any]:
    """All pictures of a step, those under one edit of the tower in a call of their own.

    Args:
        runner: Of the worker.
        step: VLLM's scheduler output, or what of it is about pictures: see `step_of`.
        encode: vLLM's own encoding of what a scheduler output names.
    """
    plain, edits = _by_edit(runner, step.scheduled_encoder_inputs)
    if not edits:
        return encode(step)
    outputs = list(encode(_part(step, plain))) if plain else []
    for (plan, place, name, identity), (metadata, pictures) in edits.items():
        try:
            edit = _edit_of(runner, plan, place, name, identity)
            with _obeying(runner, edit):
                outputs += encode(_part(step, pictures))
        except Exception as error:
            for vllm_id, numbers in pictures.items():
                own = metadata[vllm_id]
                record = runner.hd_state.record(own.group)
                record.fail(error, own.plan)
                for i in numbers:
                    found = runner.hd_requests[vllm_id].mm_features[i].identifier
                    runner.hd_state.failed_pictures.put(found, record)
            outputs += encode(_part(step, pictures))  # vLLM must find something; it is void
    return outputs


def _by_edit(
    runner: Any, scheduled: Mapping[str, list[int]]
) -> tuple[Pictures, dict[tuple[Any, ...], tuple[dict[str, RowMetadata], Pictures]]]:
    plain: Pictures = {}
    edits: dict[tuple[Any, ...], tuple[dict[str, RowMetadata], Pictures]] = {}
    for vllm_id, pictures in scheduled.items():
        metadata = runner.hd_state.metadata(vllm_id, runner.hd_requests[vllm_id].sampling_params)
        if metadata is None or metadata.tower_edit is None:
            plain[vllm_id] = pictures
            continue
        which = (metadata.plan, *metadata.tower_edit)
        owners, own = edits.setdefault(which, ({}, {}))
        owners[vllm_id], own[vllm_id] = metadata, pictures
    return plain, edits


def step_of(pictures: Mapping[str, list[int]], freed: Any = (), ec: Any = None) -> Any:
    """What vLLM's encoding reads of a scheduler output that names these pictures."""
    return SimpleNamespace(
        scheduled_encoder_inputs=pictures, free_encoder_mm_hashes=freed, ec_manager_metadata=ec
    )


def _part(step: Any, pictures: Pictures) -> Any:
    return step_of(pictures, step.free_encoder_mm_hashes, step.ec_manager_metadata)


def _edit_of(runner: Any, plan: str, place: int, name: str, identity: str) -> TowerEdit:
    part = runner.hd_state.plan(plan).parts[place]
    edit = part.branches[name].tower
    if edit is None or edit.key != identity:
        raise UnsupportedStrategy(
            f"{part.strategy.name}: the edit of the tower of row {name!r} has parameters that "
            "depend on the request; it takes those of the strategy and its artifact alone."
        )
    return edit


@contextmanager
def _obeying(runner: Any, edit: TowerEdit) -> Iterator[None]:
    """Within this block the tower obeys an edit, run eagerly: a captured graph knows no hooks."""
    model, m = runner.get_model(), runner.hd_state.model_info
    owner, name = runner.hd_tower_graphs
    graphs = getattr(owner, name, None)
    if graphs is not None:
        setattr(owner, name, None)
    try:
        with ExitStack() as stack:
            fired = stack.enter_context(hooked(model, m, edit))
            count = m.vision.read_layers
            for number, module in tower_attention(model) if edit.at == "attention" else ():
                if number < count:
                    then = _on_attention(edit, module, number, count, fired)
                    stack.enter_context(followed(module, then, ("query", "key", "value")))
            yield
    finally:
        if graphs is not None:
            setattr(owner, name, graphs)


def _on_attention(
    edit: TowerEdit, module: Any, number: int, count: int, fired: set[int]
) -> Callable[..., Any]:
    def then(given: dict[str, Any], output: Tensor) -> Tensor:
        shape = (-1, module.head_size)
        q, k, v = (
            (x.unflatten(-1, shape) if x.dim() == 3 else x).transpose(1, 2)
            for x in (given["query"], given["key"], given["value"])
        )  # [views, Hv, T, d]
        ends = given.get("cu_seqlens")
        cuts = ends.diff().tolist() if ends is not None else [q.shape[2]]
        known = {"visible": None, "scaling": module.scale, "layer": number, "layers": count}
        parts = zip(q.split(cuts, 2), k.split(cuts, 2), v.split(cuts, 2), strict=True)
        edited = [call(edit, each, k=keys, v=values, **known) for each, keys, values in parts]
        fired.add(number)
        return torch.cat(edited, 2).transpose(1, 2).reshape(output.shape)

    return then
