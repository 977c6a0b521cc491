"""In the front end: from the rows of a request to vLLM's requests, with pixels, salts, sampling."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halludecode.core import spec as hd_spec
from halludecode.core.errors import HookNeverFired, InvalidRequest
from halludecode.core.plan import Cost, Plan
from halludecode.core.prompt import Prompt
from halludecode.engines.api import Sampling
from halludecode.engines.inputs.processor import InputProcessor
from halludecode.engines.inputs.rows import PreparedRequest, Row
from halludecode.engines.sampling import Sampler
from halludecode.engines.token_rules import TokenRules
from halludecode.engines.vllm.frontend.capacity import check_rows, edited_rows, together
from halludecode.engines.vllm.frontend.loading import Loaded
from halludecode.engines.vllm.frontend.picture_items import PictureItems
from halludecode.engines.vllm.row_metadata import RowMetadata, metadata_of

GREEDY = Plan((), "greedy", frozenset(), ("main",), Cost())
COOLEST, HOTTEST = 0.01, 2.0  # what vLLM takes beside 0; our sampler knows the true temperature
# Verbs whose values belong to one request.
OWN = frozenset(
    {"token_mask", "at_first_token", "keys_at_first_token", "tally", "key", "confidence"}
)


@dataclass
class RequestGroup:
    """One user request as vLLM gets it: per child, its rows, main first.

    The scheduler's `RowGroup` and the worker's `GroupRecord` are of one child each.
    """

    members: list[list[Any]]

    @property
    def children(self) -> int:
        """Answers wanted."""
        return len(self.members)


@dataclass(eq=False)
class OpenRequest:
    """A request whose rows are made and whose state the workers hold, to be handed to vLLM.

    What is not handed over must be forgotten, see `VLLMEngine.forget`.

    Args:
        name: Ours.
        plan: What acts.
        prompt: As it was asked, for rows that are made later.
        prepared: Its rows; the main row alone until a token needs the others.
        sampling: How its tokens are drawn.
    """

    name: str
    plan: Plan
    prompt: Prompt
    prepared: PreparedRequest
    sampling: Sampling | None = None


class RequestBuilder:
    """Makes vLLM requests of rows.

    Args:
        loaded: The engine.
        inputs: The processor that rows were made with.
    """

    def __init__(self, loaded: Loaded, inputs: InputProcessor) -> None:
        self._loaded, self._inputs = loaded, inputs
        self._engine = loaded.engine
        self._pictures = PictureItems(loaded, inputs)
        self._tasks = self._engine.get_supported_tasks()

    def group(
        self,
        prepared: PreparedRequest,
        plan: Plan,
        sampling: Sampling,
        name: str,
        score_words: Mapping[str, list[int]],
        rules: TokenRules,
    ) -> RequestGroup:
        """The vLLM requests of one user request.

        Args:
            prepared: Its rows.
            plan: What acts.
            sampling: How tokens are drawn.
            name: Unused so far; says the replica, see `row_metadata.Names`.
            score_words: Words whose first-step scores are wanted, with their token ids.
            rules: Tokens that are banned, allowed or pushed.

        Raises:
            InvalidRequest: It can never fit; the sentence names the numbers.
        """
        rows = list(prepared.rows.values())
        self._check(rows, plan, sampling)
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        drawer = Sampler(replace(sampling, seed=seed), range(sampling.n), self._loaded.eos)
        members: list[list[Any]] = []
        for child, key in enumerate(drawer.keys.tolist()):
            main = RowMetadata(
                group=f"{name}.{child}",
                role=0,
                rows=[r.name for r in rows],
                lives=[r.life for r in rows],
                plan=hd_spec.format([part.strategy for part in plan.parts]),
                request_name=name,
                local_names=[[list(pair) for pair in names.items()] for names in prepared.local],
                pictured=bool(prepared.prompt.pictures),
                noise_key=key if sampling.temperature > 0 else -1,
                whole=together(plan),
                score_words=dict(score_words) or None,
                token_rules=rules.plain() if rules else None,
                temperature=_beyond(sampling.temperature),
                late=prepared.main_only,
            )
            members.append(self._child(main, prepared, plan, sampling))
        return RequestGroup(members)

    def joining(
        self,
        prepared: PreparedRequest,
        plan: Plan,
        sampling: Sampling,
        main: Any,
        ids: Sequence[int],
    ) -> list[Any]:
        """The vLLM requests of rows that join an answer; there is always one.

        Args:
            prepared: All rows of the request.
            plan: What acts.
            sampling: How tokens are drawn.
            main: The vLLM request of the main row.
            ids: The answer so far, which they read as the end of their prompts.

        Raises:
            InvalidRequest: With these rows it can never fit.
        """
        rows = dict(prepared.rows)
        if len(rows) == 1:  # every row is the main row; the scheduler waits for one
            rows["same"] = replace(rows["main"], name="same")
        self._check(list(rows.values()), plan, sampling)
        metadata = metadata_of(main.sampling_params)
        assert metadata is not None
        metadata = replace(
            metadata,
            rows=list(rows),
            lives=[row.life for row in rows.values()],
            local_names=[[list(pair) for pair in names.items()] for names in prepared.local],
            answered=len(ids),
        )
        return self._child(metadata, replace(prepared, rows=rows), plan, sampling, ids)

    def _child(
        self,
        main: RowMetadata,
        prepared: PreparedRequest,
        plan: Plan,
        sampling: Sampling,
        ids: Sequence[int] | None = None,
    ) -> list[Any]:
        """The vLLM requests of one answer's rows; with ``ids`` of those that read these, too."""
        rows = list(prepared.rows.values())
        requests: list[Any] = []
        for role, row in enumerate(rows):
            if role == 0 and ids is not None:
                continue
            # Token masks are kept per child: none may find another's KV, which they were judged by.
            salt = self._salt(row.name, prepared, plan, main.group)
            given = self._input(row, salt, answer=ids or ())
            edits = _feature_edits(row, prepared, plan)
            tower = _tower_edit(row, prepared, plan)
            metadata = replace(
                main, role=role, feature_edits=edits, tower_edit=tower, in_line=row.in_line
            )
            if role > 0:
                metadata = replace(metadata, noise_key=-1, score_words=None, token_rules=None)
            requests.append(self._request(metadata, given, rows, sampling))
        return requests

    def activation_group(self, metadata: RowMetadata, row: Row, write: int) -> RequestGroup:
        """The vLLM request of one pass.

        One that reads the vision tower must have its pictures encoded, one at every token must have
        every token computed; so these share nothing with what was computed before.
        """
        capture = metadata.capture or {}
        encodes = capture["vision"] or capture["tower"]
        sampling = Sampling(max_new_tokens=max(write, 1))
        self._check([row], GREEDY, sampling)
        given = self._input(row, "", f"|{metadata.group}" if encodes else "")
        return RequestGroup([[self._request(metadata, given, [row], sampling)]])

    def _check(self, rows: Sequence[Row], plan: Plan, sampling: Sampling) -> None:
        loaded = self._loaded
        check_rows(rows, plan, sampling.max_new_tokens, loaded.vllm_config, loaded.replicas)

    def _request(
        self, metadata: RowMetadata, given: Any, rows: Sequence[Row], sampling: Sampling
    ) -> Any:
        """VLLM's request of one row.

        Rows beside the main one are sampled from only because vLLM samples every row; their tokens
        are overwritten. So they have no end tokens, penalties or log-probabilities of their own.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        beside = [len(row.input_ids) for row in rows[1:]]
        room = min((self._loaded.context - n for n in beside), default=sampling.max_new_tokens)
        main = metadata.role == 0
        every_token = bool(metadata.capture and metadata.capture["every_token"])
        most = min(sampling.max_new_tokens, room) - metadata.answered
        if most < 1:
            raise InvalidRequest(
                f"Row {metadata.name!r} has no room for the {metadata.answered} tokens written "
                f"before it began; the model's context is {self._loaded.context}: shorten the "
                "prompt or lower max_new_tokens."
            )
        params = SamplingParams(
            max_tokens=most,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            temperature=vllm_temperature(sampling.temperature) if main else 0.0,
            top_p=sampling.top_p if main else 1.0,
            top_k=sampling.top_k if main else 0,
            repetition_penalty=sampling.repetition_penalty if main else 1.0,
            min_tokens=sampling.min_new_tokens if main else 0,
            stop_token_ids=self._loaded.eos if main else None,
            logprobs=sampling.logprobs if main else None,
            bad_words=list(sampling.bad_words) if main else None,  # or it keeps no tokens for us
            skip_reading_prefix_cache=metadata.whole or every_token,
            extra_args=metadata.extra_args(),
        )
        name = metadata.group if main else f"{metadata.group}#{metadata.role}"
        request = self._engine.input_processor.process_inputs(
            name, copy.copy(given), params, supported_tasks=self._tasks
        )
        request.external_req_id = name
        return request

    def _input(self, row: Row, salt: str, own: str = "", answer: Sequence[int] = ()) -> Any:
        """VLLM's input of one row: the ids as we made them, one item per picture.

        An item's hash is by what vLLM finds it in its cache of encoder outputs and in its cache of
        KV blocks, so it is a digest of the picture and of every edit (`ImageInput.key`).
        """
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        ids = [*row.input_ids.tolist(), *answer]
        extra = {"cache_salt": salt} if salt else {}
        if not row.images:
            return tokens_input(ids, **extra)
        is_image = row.input_ids == self._inputs.image_token
        at = is_image.nonzero().flatten()
        places: list[Any] = []
        for chosen in at.split([image.count for image in row.images]):
            first, last = int(chosen[0]), int(chosen[-1])
            mask = is_image[first : last + 1]
            places.append(PlaceholderRange(first, len(mask), None if bool(mask.all()) else mask))
        items = [self._pictures.item(image) for image in row.images]
        return mm_input(
            ids,
            MultiModalKwargsItems({"image": items}),
            {"image": [image.key + own for image in row.images]},
            {"image": places},
            **extra,
        )

    def _salt(self, name: str, prepared: PreparedRequest, plan: Plan, group: str) -> str:
        """Separates the KV of an edited row from everybody else's; "" for rows left alone.

        Edits of emitted or generated tokens depend on where the prompt ends, so such rows share
        nothing but the same prompt's KV; token masks, state and the like belong to the request.
        """
        acting = [
            part
            for i, part in enumerate(plan.parts)
            if name in {prepared.local[i].get(own) for own in edited_rows(part)}
        ]
        if not acting:
            return ""
        if any(p.steers or p.whole or p.verbs & OWN or p.activations for p in acting):
            return f"hd:{group}"
        return f"hd:{prepared.rows[name].key}"


def vllm_temperature(temperature: float) -> float:
    """The temperature as far as vLLM takes it."""
    return min(max(temperature, COOLEST), HOTTEST) if temperature > 0 else 0.0


def _beyond(temperature: float) -> float:
    return 0.0 if temperature == vllm_temperature(temperature) else temperature


def _tower_edit(row: Row, prepared: PreparedRequest, plan: Plan) -> list[Any] | None:
    tower = next((image.tower for image in row.images), None)
    if tower is None:
        return None
    for i, names in enumerate(prepared.local):
        for name, label in names.items():
            branch = plan.parts[i].branches.get(name)
            if label == row.name and branch is not None and branch.tower is not None:
                return [i, name, tower.key]
    raise HookNeverFired(f"Nobody edits the vision tower of row {row.name!r}.")


def _feature_edits(row: Row, prepared: PreparedRequest, plan: Plan) -> list[list[Any]] | None:
    if all(image.features is None for image in row.images):
        return None
    edits: list[list[Any]] = []
    for image in row.images:
        edit, edited, index, state = image.features  # type: ignore[misc]
        i = next(n for n, own in enumerate(prepared.state) if own is state)
        name = next(local for local, label in prepared.local[i].items() if label == row.name)
        edits.append([i, name, edited, index, edit.key, image.count])
    return edits
