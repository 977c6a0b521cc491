"""What is asked of a model: samples of one benchmark on one source, each with its picture."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halludecode.core.errors import InvalidData, InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from halludecode.evals.benchmarks.base import Benchmark


@dataclass(frozen=True)
class EvalImage:
    """A picture of the evaluation data, read when it is needed.

    A question that is asked without a picture has one with an empty digest (`EvalImage.none`).

    Args:
        name: The name its annotation uses.
        read: Returns the encoded bytes.
        where: Path or row, for error messages.
        digest: SHA-256 of the bytes, first 16 hex digits.
        parts: The pictures, where it stands for several that are asked about together.
    """

    name: str
    read: Callable[[], bytes]
    where: str
    digest: str
    parts: tuple[EvalImage, ...] = ()

    @property
    def all(self) -> tuple[EvalImage, ...]:
        """The pictures that a model is shown, in order."""
        return self.parts or (self,)

    @classmethod
    def joined(cls, parts: Sequence[EvalImage]) -> EvalImage:
        """Several pictures that are asked about together; to be looked at, side by side."""
        digests = "".join(part.digest for part in parts)
        return cls(
            " + ".join(part.name for part in parts),
            partial(_side_by_side, tuple(parts)),
            parts[0].where,
            hashlib.sha256(digests.encode()).hexdigest()[:16],
            tuple(parts),
        )

    @classmethod
    def from_file(cls, path: Path, name: str) -> EvalImage:
        """A picture in a file; its bytes are hashed now.

        Raises:
            InvalidData: The file cannot be opened.
        """
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise InvalidData(f"{path}: the picture cannot be opened ({error.strerror}).") from None
        return cls(name, path.read_bytes, str(path), digest)

    @classmethod
    def none(cls, name: str) -> EvalImage:
        """Stands where there is no picture; ``name`` says so."""
        return cls(name, bytes, name, "")

    def load(self) -> Image:
        """Decodes the picture as every engine does, see `load_picture`.

        Raises:
            InvalidRequest: Its file is gone, or the bytes are no picture.
        """
        from halludecode.engines.inputs.images import VIDEO, load_picture

        try:
            data = self.read()
        except OSError as error:
            reason = error.strerror or error
            raise InvalidRequest(f"{self.where}: the picture cannot be read ({reason}).") from None
        try:
            return load_picture(data, self.where).image
        except InvalidRequest as error:
            said = str(error)
            if said.endswith(VIDEO):
                raise
            reason = "not a picture" if "not a readable picture" in said else said.rstrip(".")
            raise InvalidRequest(
                f"{self.where}: the picture cannot be decoded ({reason})."
            ) from None


def _side_by_side(parts: Sequence[EvalImage]) -> bytes:
    from PIL import Image

    pictures = [part.load() for part in parts]
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    encoded = io.BytesIO()
    sheet.save(encoded, format="PNG")
    return encoded.getvalue()


NO_PICTURE = EvalImage.none("no picture")


@dataclass(frozen=True)
class Sample:
    """One question about one picture, or about none.

    A benchmark makes it from its data; picture, prompt and group are filled in when it is taken.

    Args:
        id: Unique within its unit, such as POPE's question id or COCO's image id.
        question: The data's own words; "" where the prompt preset has them all.
        image: Name of its picture; None is asked without one.
        more: Names of further pictures that are shown with it, in order.
        label: The right answer, such as "yes"; None for descriptions.
        objects: True objects of the picture; None where there is a label.
        facts: What else its line holds, for the scorer.
        where: Where it stands, for messages.
        split: The split it belongs to; None in benchmarks without any.
        group: What a limit counts, where that is not the picture; see `Benchmark.group`.
        group_size: Samples of its group.
        prompt: The words sent to the model.
        picture: The picture asked about.
    """

    id: int | str
    question: str
    image: str | None
    label: str | None = None
    objects: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    split: str | None = None
    group: str = ""
    more: tuple[str, ...] = ()
    group_size: int = 1
    prompt: str = ""
    picture: EvalImage = NO_PICTURE

    @cached_property
    def digest(self) -> str:
        """Hash of the data behind it: id, question, picture bytes, label or objects, facts."""
        truth = self.label if self.objects is None else "|".join(self.objects)
        facts = [json.dumps(self.facts, sort_keys=True)] if self.facts else []
        text = "\0".join((str(self.id), self.question, self.picture.digest, str(truth), *facts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EvalUnit:
    """One benchmark on one data source and split: the samples of one row of results.

    Args:
        benchmark: Asks and judges.
        data: Name of the data source.
        split: The benchmark's split; None in those without any.
        samples: In file order, pictures together.
        revision: Revision of a hub data set; None for files.
        oddities: What is odd in them, counted: see `oddities`.
    """

    benchmark: Benchmark
    data: str
    split: str | None
    samples: tuple[Sample, ...]
    revision: str | None = None
    oddities: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def task(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What names the unit: task, data source, split."""
        return (self.task, self.data, self.split)

    @property
    def digest(self) -> str:
        """Hash over all samples, in order."""
        joined = "".join(sample.digest for sample in self.samples)
        return hashlib.sha256(joined.encode()).hexdigest()
