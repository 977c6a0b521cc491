"""All three processes: what travels with every row from the front end to scheduler and workers.

It rides in ``SamplingParams.extra_args["hd"]`` as plain numbers, strings and lists; strategies
travel as their canonical text and are compiled again where they are used. vLLM sends a request's
sampling parameters to scheduler and workers unread, so nothing of vLLM's messages is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "hd"
VERSION = 1
# What the scheduler tells the front end of a group that needs the rows it began without.
ASKS = "halludecode: asks for its other rows"


@dataclass(frozen=True)
class RowMetadata:
    """One row of a request's group.

    Args:
        group: Id of the group: the vLLM request id of its main row.
        role: Place among the rows, 0 is main.
        rows: Names of all rows, main first.
        lives: "answer" or "prefill" of each row.
        plan: Canonical text of the strategies that act, "" for the plain model.
        request_name: Of the user's request, whose state these rows read; its children share it.
        local_names: Per strategy of the plan: pairs of its own name of a row and the one in
            ``rows``.
        pictured: Whether the main row has a picture; without one every strategy is the identity.
        noise_key: Of the seeded noise this row's tokens are drawn with; -1 leaves drawing to vLLM.
        whole: Whether all rows must prefill unchunked in one forward.
        feature_edits: Edits of picture features, per picture: place of the strategy in the plan,
            its own name of the row, digest of what is edited, index of the picture, identity of
            the edit, tokens it leaves.
        tower_edit: Of all its pictures: place of the strategy in the plan, its own name of the row,
            identity of the edit.
        in_line: Image tokens were chosen and form no raster any more: positions stand in line.
        score_words: Words whose first-step scores are wanted, with their token ids.
        token_rules: Tokens that are banned, allowed or pushed in all rows: `TokenRules.plain`.
        temperature: Where it is one that vLLM would not take; 0 where it is in its parameters.
        late: Whether the main row begins alone; a row beside it that comes later has this, too.
        answered: Tokens of the answer at the end of this row's prompt.
        capture: What a pass of the plain model keeps, see `activations.capture_of`; None for
            answers.
    """

    group: str
    role: int
    rows: list[str]
    lives: list[str]
    plan: str = ""
    request_name: str = ""
    local_names: list[list[list[str]]] | None = None
    pictured: bool = False
    noise_key: int = -1
    whole: bool = False
    feature_edits: list[list[Any]] | None = None
    tower_edit: list[Any] | None = None
    in_line: bool = False
    score_words: dict[str, list[int]] | None = None
    token_rules: dict[str, Any] | None = None
    temperature: float = 0.0
    late: bool = False
    answered: int = 0
    capture: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """This row's name."""
        return self.rows[self.role]

    @property
    def size(self) -> int:
        """Rows of the group."""
        return len(self.rows)

    @property
    def alone(self) -> bool:
        """Whether the other rows have not begun."""
        return self.late and self.size == 1

    @property
    def life(self) -> str:
        """This row's life."""
        return self.lives[self.role]

    def extra_args(self) -> dict[str, Any]:
        """The value of ``SamplingParams.extra_args``."""
        return {KEY: {"v": VERSION, **{k: v for k, v in asdict(self).items() if v is not None}}}


def metadata_of(sampling_params: Any) -> RowMetadata | None:
    """What came with a row's sampling parameters; None for everybody else's requests."""
    extra_args: Mapping[str, Any] | None = getattr(sampling_params, "extra_args", None)
    fields = extra_args.get(KEY) if extra_args else None
    if fields is None or fields.get("v") != VERSION:
        return None
    return RowMetadata(**{name: value for name, value in fields.items() if name != "v"})


class Names:
    """Unused names of requests and of passes before them; those of their rows begin with them.

    Args:
        replicas: Requests take them in turn, their earlier passes go along.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._count = self._turn = 0

    def __call__(self, replica: int | None = None) -> str:
        """A name at a replica; None takes the next one."""
        self._count += 1
        if replica is None:
            self._turn = replica = (self._turn + 1) % self._replicas
        return f"hd{self._count}@{replica}"


def replica_of(name: str) -> int:
    """The replica that all rows and passes of a request go to, from any of their names."""
    return int(name.partition("@")[2].partition(".")[0])
