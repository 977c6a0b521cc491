"""What a row of the batch sees: prompts, pictures, and edits that have an identity.

Everything here is immutable and has a digest, because equal rows are computed once, prefixes are
reused across requests, and random edits must draw the same noise wherever they run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from halludecode.core.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image


def digest(*parts: object) -> str:
    """Hex digest of the parts' text or bytes, each part kept apart from the next."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


@dataclass(frozen=True, eq=False)
class Picture:
    """A PIL image in RGB with the digest of its content; equal content is equal."""

    image: Image
    key: str

    @classmethod
    def of(cls, image: Image) -> Picture:
        """Wrap an image, converted to RGB."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return cls(rgb, digest(rgb.size, rgb.tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


Part = str | Picture


@dataclass(frozen=True)
class Turn:
    """One turn of a chat: a role and its text and pictures in order.

    Args:
        role: As chat templates name it.
        parts: What it says.
        more: What else its message has for the template (``name``, ``tool_calls``), as JSON.
    """

    role: str
    parts: tuple[Part, ...]
    more: str = ""


@dataclass(frozen=True)
class Prompt:
    """Chat turns with pictures in place.

    Args:
        turns: What was said.
        raw: The text is already in the model's own template.
        template: What the chat template is told beside the turns, as JSON; "" for nothing.
        open_ended: The last turn is the beginning of the answer.
        opened: The template opens the assistant's turn at the end.
    """

    turns: tuple[Turn, ...]
    raw: bool = False
    template: str = ""
    open_ended: bool = False
    opened: bool = True

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in order."""
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, Picture))

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        parts = self.turns[self._question_turn].parts
        return "".join(part for part in parts if isinstance(part, str)).strip()

    @property
    def key(self) -> str:
        """Digest of text, roles and picture content."""
        flat: list[str] = ["raw" if self.raw else "chat"]
        if self.template or self.open_ended or not self.opened:
            flat.append(f"template:{self.open_ended}{self.opened}{self.template}")
        for turn in self.turns:
            flat.append("role:" + turn.role)
            if turn.more:
                flat.append("more:" + turn.more)
            flat += [
                f"picture:{p.key}" if isinstance(p, Picture) else f"text:{p}" for p in turn.parts
            ]
        return digest(*flat)

    def without_images(self, which: Collection[int] | None = None) -> Prompt:
        """The image-free prompt: each placeholder goes, with the newline that follows it.

        Args:
            which: Pictures to leave out, counted from 0 in the prompt's order; None is all.
        """
        turns: list[Turn] = []
        place = count()
        for turn in self.turns:
            parts: list[Part] = []
            after_picture = False
            for part in turn.parts:
                if isinstance(part, str):
                    parts.append(part.removeprefix("\n") if after_picture else part)
                after_picture = isinstance(part, Picture)
                if isinstance(part, Picture) and which is not None and next(place) not in which:
                    parts.append(part)
                    after_picture = False
            turns.append(replace(turn, parts=tuple(parts)))
        return replace(self, turns=tuple(turns))

    def words_for_pictures(self, words: Sequence[str]) -> Prompt:
        """The image-free prompt with words in every picture's place, on a line of their own.

        Args:
            words: One text per picture, in order.
        """
        fresh = iter(words)
        turns: list[Turn] = []
        for turn in self.turns:
            parts: list[Part] = []
            for part, after in zip(turn.parts, (*turn.parts[1:], ""), strict=True):
                text = part if isinstance(part, str) else next(fresh)
                if isinstance(part, Picture) and not str(after).startswith("\n"):
                    text += "\n"
                parts[-1:] = ["".join(map(str, (*parts[-1:], text)))]
            turns.append(replace(turn, parts=tuple(parts)))
        return replace(self, turns=tuple(turns))

    def replace_pictures(self, pictures: list[Picture]) -> Prompt:
        """The same prompt with other pictures, in order."""
        fresh = iter(pictures)
        return replace(
            self,
            turns=tuple(
                replace(
                    t, parts=tuple(next(fresh) if isinstance(p, Picture) else p for p in t.parts)
                )
                for t in self.turns
            ),
        )

    def with_instruction(self, text: str) -> Prompt:
        """All pictures under another instruction, as a chat of one user turn.

        What else was said is dropped: earlier turns, answers and the system message. `map_question`
        keeps them.
        """
        self._refuse_raw("asks this prompt another question")
        return Prompt((Turn("user", (*self.pictures, text)),), template=self.template)

    def answered(self, words: str) -> Prompt:
        """The same chat and the beginning of its answer, which the model would go on from."""
        if self.raw:
            last = self.turns[-1]
            gap = "" if str(last.parts[-1]).endswith(("\n", " ")) else " "
            return replace(
                self, turns=(*self.turns[:-1], replace(last, parts=(*last.parts, gap + words)))
            )
        return replace(self, turns=(*self.turns, Turn("assistant", (words,))), open_ended=True)

    def map_question(self, fn: Callable[[str], str]) -> Prompt:
        """The same chat with ``fn(question)`` as the words of the last user turn.

        Pictures, earlier turns and the system message stay. Words that stand between pictures of
        that turn become one text, where the first of them stood.
        """
        self._refuse_raw("rewords the question of this prompt")
        at = self._question_turn
        words = "".join(part for part in self.turns[at].parts if isinstance(part, str))
        before = words[: len(words) - len(words.lstrip())]  # as it is between picture and words
        after = words[len(words.rstrip()) :] if words.strip() else ""
        text: Part = before + fn(words.strip()) + after
        parts = list(self.turns[at].parts)
        first = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
        rest = [part for part in parts[first:] if isinstance(part, Picture)]
        turn = replace(self.turns[at], parts=(*parts[:first], text, *rest))
        return replace(self, turns=(*self.turns[:at], turn, *self.turns[at + 1 :]))

    def with_system(self, text: str) -> Prompt:
        """The same chat under this system message, in place of its own if it has one."""
        self._refuse_raw("gives this prompt a system message")
        rest = tuple(turn for turn in self.turns if turn.role != "system")
        return replace(self, turns=(Turn("system", (text,)), *rest))

    @property
    def _question_turn(self) -> int:
        """Place of the last user turn; the last turn where no user spoke."""
        places = [i for i, turn in enumerate(self.turns) if turn.role == "user"]
        return places[-1] if places else len(self.turns) - 1

    def _refuse_raw(self, doing: str) -> None:
        if self.raw:
            raise InvalidRequest(
                f"A strategy {doing}, so it needs the model's chat template: give plain words or "
                "chat messages, not a rendered prompt with placeholders."
            )
