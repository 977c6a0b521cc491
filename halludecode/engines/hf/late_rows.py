"""Rows beside main that begin to read at the first token that needs them.

The main row decides most tokens alone (`core.step.decided`). Until one is undecided, a request's
other rows read nothing, and passes that only they need are not run. When a token needs them, they
read what they have missed, several tokens in one forward. From there on they either run in the main
rows' forwards, or wait again with their KV laid aside, whichever costs less (`pays_to_wait`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor

from halludecode.core.plan import Plan
from halludecode.engines.hf.batch import Batch
from halludecode.engines.hf.kept_rows import Prefix
from halludecode.engines.hf.model import HFModel
from halludecode.engines.inputs.processor import LRU
from halludecode.engines.inputs.rows import PreparedRequest, RowBuilder

Logits: TypeAlias = Mapping[tuple[int, str], Tensor]  # by place of a part and its name for a row


# Decoder weights from which on, on a processor, a second token costs most of what the first does:
# one token's products are of a matrix and a vector, two tokens' are of matrices, which read no less
# and compute slower. Two tokens took 1.1, 1.0, 1.4 and 1.8 times as long as one at 6, 14, 25 and 39
# million weights (8 layers, one thread), and 1.9 times at 360; 16 took 1.1 to 1.3 times as long as
# 8, and 64 took 1.5 to 1.75 times as long as 32, at any number of weights.
HEAVY = 35e6


def pays_to_wait(hf_model: HFModel, answers: int) -> bool:
    """Whether rows that have begun should wait for the next token that needs them.

    With t(n) the time of n tokens in one forward and u the share of tokens that need the rows, a
    row beside B main rows costs t(2B) - t(B) a token. One that waits costs u forwards, which read
    all that it missed: about u t(1/u) for B = 1 and t(B) for more, since some row is nearly always
    needed. As t(2B) is less than 2 t(B) from B = 2 on, waiting pays for one answer alone, and there
    where t(2) - t(1) is more than u t(2), at u = 0.42 (the testbed's captions): t(2) > 1.7 t(1).

    Args:
        hf_model: The model.
        answers: Those whose main rows share a forward.
    """
    info = hf_model.info
    weights = 12 * info.num_layers * info.hidden_size**2
    return answers == 1 and hf_model.device.type == "cpu" and weights >= HEAVY


@dataclass(frozen=True)
class Asked:
    """An answer whose next token its main row does not decide.

    Args:
        answer: Its number.
        request: Number of its request.
        ids: Its tokens.
    """

    answer: int
    request: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class HasRead:
    """How far an answer's rows have read: the prompt and ``count`` tokens of the answer."""

    count: int
    kept: Mapping[str, Prefix]


@dataclass
class LateRows:
    """The rows beside main of one batch.

    Args:
        hf_model: The model.
        row_builder: Where rows come from.
        plan: What runs.
        prepare: Numbers of requests -> the requests with all their rows, their passes run.
        prefixes: Where image prefixes are kept; None where they are not.

    Attributes:
        started: Requests whose rows have begun to read.
        started_answers: Answers that had a token undecided.
        admitted: Answers whose rows run in the main rows' forwards.
        changed: Answers whose rows an edit inside the model changed.
    """

    hf_model: HFModel
    row_builder: RowBuilder
    plan: Plan
    prepare: Callable[[Sequence[int]], list[PreparedRequest]]
    prefixes: LRU[Prefix] | None = None
    started: dict[int, PreparedRequest] = field(default_factory=dict[int, PreparedRequest])
    started_answers: set[int] = field(default_factory=set[int])
    admitted: set[int] = field(default_factory=set[int])
    changed: set[int] = field(default_factory=set[int])
    _read: dict[int, HasRead] = field(default_factory=dict[int, HasRead])
    _open: tuple[list[Asked], Batch] | None = None
    _finished: set[int] = field(default_factory=set[int])

    @property
    def one_by_one(self) -> bool:
        """Whether a row must read token by token: what edits it looks at the newest token."""
        extra = frozenset[str]().union(*(part.extra for part in self.plan.parts))
        return any(extra & {*part.attend_rows} for part in self.plan.parts)

    def logits(self, asked: Sequence[Asked]) -> list[Logits]:
        """Logits float32 [V] after all tokens of some answers, which their rows now read.

        Names that mean the main row are left out.
        """
        self.started_answers |= {a.answer for a in asked}
        new = [r for r in dict.fromkeys(a.request for a in asked) if r not in self.started]
        if new:
            self.started |= dict(zip(new, self.prepare(new), strict=True))
        same = [(a.request, a.ids, self._count(a)) for a in asked]  # children before they part
        first = dict(zip(reversed(same), reversed(asked), strict=True))
        found: dict[int, Logits] = {}
        for alike in self._alike(list(first.values())):
            found |= self._advance(alike)
        if len(first) < len(asked):
            self._close()
            for each, which in zip(asked, same, strict=True):
                read = self._read.get(first[which].answer)
                if read is not None:
                    self._read[each.answer] = read
        return [found[first[which].answer] for which in same]

    def admit_to(self, batch: Batch, answers: Sequence[int], requests: Sequence[int]) -> None:
        """Let rows that have begun run in the forwards of their main rows.

        Args:
            batch: Of the main rows.
            answers: Those of its requests, in order.
            requests: The numbers of those requests where all rows are told.
        """
        if pays_to_wait(self.hf_model, len(answers)):
            return
        self._close()
        late, kept = dict[int, PreparedRequest](), dict[tuple[int, str], Prefix]()
        for r, (answer, request) in enumerate(zip(answers, requests, strict=True)):
            if answer in self.started_answers - self.admitted:
                late[r] = self.started[request]
                read = self._read.pop(answer, None)  # None where every row is the main row
                kept |= {(r, name): own for name, own in read.kept.items()} if read else {}
        self.admitted |= {answers[r] for r in late}
        if late:
            batch.admit(late, kept)

    def forget(self, answers: Sequence[int]) -> None:
        """Drop the KV of finished answers."""
        self._finished.update(answers)
        for answer in answers:
            self._read.pop(answer, None)

    def _alike(self, asked: Sequence[Asked]) -> list[list[Asked]]:
        """Answers that one forward can serve: with the same rows, and as much to read."""
        groups: dict[object, list[Asked]] = {}
        for each in asked:
            local = [sorted(names.items()) for names in self.started[each.request].local]
            # A recurrent layer would read padding between what a row has read and what it reads.
            even = self.one_by_one or self.hf_model.info.recurrent
            behind = (self._count(each), len(each.ids)) if even else ()
            groups.setdefault(str((local, behind)), []).append(each)
        return list(groups.values())

    def _count(self, asked: Asked) -> int:
        """Tokens of the answer that were read; -1 if not even the prompt was."""
        if self._open:
            for each in self._open[0]:
                if each.answer == asked.answer:
                    return len(each.ids)
        read = self._read.get(asked.answer)
        return -1 if read is None else read.count

    def _advance(self, asked: list[Asked]) -> dict[int, Logits]:
        """One group's rows read on to the ends of their answers."""
        request = self.started[asked[0].request]
        if len(request.rows) == 1:  # every row is the main row
            return {each.answer: {} for each in asked}
        whole = [(self._count(each), each.ids) for each in asked]
        stops = [len(asked[0].ids)]
        if self.one_by_one:  # as in a batch where rows are never late
            stops = list(range(max(whole[0][0] + 1, 0), len(asked[0].ids) + 1))
        logits = Tensor()
        for stop in stops:
            cut = [replace(e, ids=e.ids[:stop]) for e in asked] if self.one_by_one else asked
            logits = self._forward(cut)
        batch = self._opened()
        return self._named(asked, batch, logits)

    def _forward(self, asked: list[Asked]) -> Tensor:
        """One forward; the rows of the last one stay as they lie while the same are asked for."""
        if self._open and [e.answer for e in self._open[0]] == [e.answer for e in asked]:
            before, batch = self._open
            ids = [self._unread(before, row, asked) for row in batch.rows]
            logits = batch.read(ids)
        else:
            self._close()
            requests = [_beside_main(self.started[each.request]) for each in asked]
            batch = Batch(self.hf_model, self.row_builder, self.plan, requests)
            batch.write([asked[r].ids for r, _ in batch.rows])
            reads = [self._read.get(asked[r].answer) for r, _ in batch.rows]
            kept = [
                read.kept[name] if read else None
                for read, (_, name) in zip(reads, batch.rows, strict=True)
            ]
            logits = batch.resume(kept, self.prefixes)
        self._open = asked, batch
        if batch.context.changed is not None:
            touched = batch.context.changed.tolist()
            self.changed |= {e.answer for e, hit in zip(asked, touched, strict=True) if hit}
        return logits

    def _opened(self) -> Batch:
        assert self._open is not None
        return self._open[1]

    def _unread(
        self, before: list[Asked], row: tuple[int, str], asked: list[Asked]
    ) -> tuple[int, ...]:
        return asked[row[0]].ids[len(before[row[0]].ids) :]

    def _named(self, asked: list[Asked], batch: Batch, logits: Tensor) -> dict[int, Logits]:
        place = {key: i for i, key in enumerate(batch.rows)}
        return {
            each.answer: {
                (i, own): logits[place[n, name]]
                for i, local in enumerate(self.started[each.request].local)
                for own, name in local.items()
                if name != "main"
            }
            for n, each in enumerate(asked)
        }

    def _close(self) -> None:
        """Lay the KV of the rows of the last forward aside."""
        if self._open is None:
            return
        asked, batch = self._open
        self._open = None
        kept = dict(zip(batch.rows, batch.kept(), strict=True))
        for n, each in enumerate(asked):
            if each.answer in self._finished:
                continue
            own = {name: prefix for (r, name), prefix in kept.items() if r == n}
            self._read[each.answer] = HasRead(len(each.ids), own)


def _beside_main(request: PreparedRequest) -> PreparedRequest:
    """The request without its main row, and without names that mean it."""
    local = tuple({n: r for n, r in names.items() if r != "main"} for names in request.local)
    return replace(
        request, rows={n: r for n, r in request.rows.items() if n != "main"}, local=local
    )
