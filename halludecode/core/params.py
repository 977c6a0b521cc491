"""Parameters of strategies and benchmarks: the single place for default, help and bounds."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from numbers import Integral, Number
from typing import Any, ClassVar, cast

from halludecode.core.errors import InvalidParameter

LARGEST = 1e30
_TOO_LARGE = f"must be at most {LARGEST:g} in size, as scores times it must be numbers in float32."

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")  # 1e-1, which YAML 1.1 has no dot in


@dataclass(frozen=True)
class Param:
    """One parameter: the single place for its default, help and bounds."""

    name: str
    default: Any
    help: str
    type: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def bounds(self) -> str:
        """Human-readable bounds, empty where there are none."""
        if self.choices is not None:
            return "one of " + ", ".join(map(str, self.choices))
        low = (
            f"[{self.ge:g}"
            if self.ge is not None
            else f"({self.gt:g}"
            if self.gt is not None
            else ""
        )
        high = (
            f"{self.le:g}]"
            if self.le is not None
            else f"{self.lt:g})"
            if self.lt is not None
            else ""
        )
        if low and high:
            return f"in {low}, {high}"
        if low:
            return f"{'>=' if low[0] == '[' else '>'} {low[1:]}"
        return f"{'<=' if high[-1] == ']' else '<'} {high[:-1]}" if high else ""

    def check(self, owner: str, value: Any) -> Any:
        """The value, int widened to float and list to tuple; else InvalidParameter."""
        large = isinstance(value, int) and abs(value) > LARGEST  # perhaps for a float or for repr
        where = f"{owner}({self.name}={'...' if large else repr(value)})"
        if large:
            raise InvalidParameter(f"{where}: {self.name} {_TOO_LARGE}")
        value = self._typed(where, self._plain(value))
        if value is None:
            return None
        if self.choices is not None and value not in self.choices:
            raise InvalidParameter(f"{where}: {self.name} must be {self.bounds}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise InvalidParameter(f"{where}: {self.name} must be finite.")
            inside = (
                (self.ge is None or value >= self.ge)
                and (self.gt is None or value > self.gt)
                and (self.le is None or value <= self.le)
                and (self.lt is None or value < self.lt)
            )
            if not inside:
                raise InvalidParameter(f"{where}: {self.name} must be {self.bounds}.")
            if abs(value) > LARGEST:
                raise InvalidParameter(f"{where}: {self.name} {_TOO_LARGE}")
        return value

    def _plain(self, value: Any) -> Any:
        """Numbers of other libraries as Python's own; numbers and truths that came as text."""
        if isinstance(value, Number) and not isinstance(value, bool | int | float | complex):
            number = cast("Any", value)
            return int(number) if isinstance(value, Integral) else float(number)
        number_wanted = not any("str" in kind for kind in self.type.split("|"))
        if isinstance(value, str) and number_wanted and _EXPONENT.fullmatch(value):
            return float(value)
        truths = {"true": True, "false": False}  # as YAML and JSON write them
        if isinstance(value, str) and number_wanted and "bool" in self.type:
            return truths.get(value.lower(), value)
        return value

    def _typed(self, where: str, value: Any) -> Any:
        kinds = [kind.strip() for kind in self.type.split("|")]
        if value is None and "None" in kinds:
            return None
        if isinstance(value, list):
            value = tuple(cast("list[Any]", value))  # lists come from YAML; tuples are hashable
        for kind in kinds:
            if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
                return value
            if kind == "bool" and isinstance(value, bool):
                return value
            if kind == "str" and isinstance(value, str):
                return value
            if kind.startswith("tuple[int") and isinstance(value, tuple | int):
                items = (value,) if isinstance(value, int) else cast("tuple[Any, ...]", value)
                if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                    return items
            if kind.startswith("tuple[str") and isinstance(value, tuple | str):
                words = (value,) if isinstance(value, str) else cast("tuple[Any, ...]", value)
                if all(isinstance(word, str) for word in words):
                    return words
            if kind.startswith("Callable") and callable(cast("Any", value)):
                return cast("Any", value)
        raise InvalidParameter(
            f"{where}: {self.name} must be a {self.type.replace(' | ', ' or ')}."
        )


def param(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A parameter with its default, help text and bounds."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    return field(default=default, metadata={"help": help, **bounds})


def type_name(annotation: Any) -> str:
    """The annotation as written, whether or not the file postpones evaluating them."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if type(annotation) is type else str(annotation)


class Parameters:
    """Base of frozen dataclasses whose fields are all made by `param`; ``name`` is the owner's."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in self.params():
            object.__setattr__(self, spec.name, spec.check(self.name, getattr(self, spec.name)))

    @classmethod
    def params(cls) -> tuple[Param, ...]:
        """The parameters in the order they are declared.

        Raises:
            InvalidParameter: A field was not made by `param`.
        """
        fields = dataclasses.fields(cast("Any", cls))
        for bare in (f.name for f in fields if "help" not in f.metadata):
            raise InvalidParameter(
                f"{cls.name}: {bare} is no parameter yet; write {bare}: TYPE = "
                "param(DEFAULT, HELP), or ClassVar[TYPE] if it is none."
            )
        return tuple(
            Param(name=f.name, default=f.default, type=type_name(f.type), **f.metadata)
            for f in fields
        )

    def resolved(self) -> dict[str, Any]:
        """Every parameter with its value."""
        return {spec.name: getattr(self, spec.name) for spec in self.params()}


def check_name(name: Any, kind: str) -> None:
    """Refuses a decorator that was not called with a name.

    Raises:
        InvalidParameter: It was put before its class without brackets, for one.
    """
    if not isinstance(name, str):
        raise InvalidParameter(f'@{kind} needs a name: @{kind}("my_name").')


def check_class(cls: Any, base: type[Parameters], name: str) -> None:
    """Refuses a class that cannot be registered as a ``base``.

    Overriding is the declaration, so that a misspelt hook would silently do nothing.

    Raises:
        InvalidParameter: The class is no ``base``, what it defines is nearly, but not quite,
            something a ``base`` has, a method cannot be called as that of the ``base`` is, or a
            parameter has the name of something else.
    """
    kind = base.__name__
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise InvalidParameter(f"{name}: {cls!r} must be a class derived from {kind}.")
    known = sorted({attr for parent in cls.__mro__[1:] for attr in vars(parent)})
    _check_parameter_names(cls, known, name)
    for attr, value in vars(cls).items():
        if attr.startswith("_") or isinstance(value, dataclasses.Field):
            continue
        if attr in known:
            _check_call(cls, attr, name)
            continue
        if close := difflib.get_close_matches(attr, known, n=1, cutoff=0.8):
            raise InvalidParameter(
                f"{name}: {cls.__name__}.{attr} is nothing that a {kind} has. Did you mean "
                f"{close[0]!r}? If it is your own, begin its name with _."
            )


def _check_parameter_names(cls: Any, known: Collection[str], name: str) -> None:
    """Refuses a parameter in place of a method, and the other way round: one would be lost."""
    parents = (parent for parent in cls.__mro__[1:] if dataclasses.is_dataclass(parent))
    theirs = {f.name for parent in parents for f in dataclasses.fields(parent)}
    annotated = inspect.get_annotations(cls)
    own = {attr for attr, kind in annotated.items() if "ClassVar" not in str(kind)}
    if taken := own & set(known) - theirs:
        raise InvalidParameter(
            f"{name}: parameter {min(taken)!r} has the name of something that {cls.__name__} "
            "inherits and would replace; choose another."
        )
    body = cast("dict[str, Any]", cls.__dict__)
    if taken := theirs & set(body) - own:
        raise InvalidParameter(
            f"{name}: {cls.__name__}.{min(taken)} has the name of a parameter that "
            f"{cls.__name__} inherits; choose another."
        )


def _check_call(cls: Any, attr: str, name: str) -> None:
    """Refuses a method that cannot be called as the one it overrides is."""
    ours, theirs = getattr(cls, attr), getattr(cast("Any", super(cls, cls)), attr)
    if not (inspect.isroutine(ours) and inspect.isroutine(theirs)):
        return
    wanted = inspect.signature(theirs).parameters.values()
    places = [p for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    named = {p.name: None for p in wanted if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(ours).bind(*places, **named)
    except TypeError:
        taken = inspect.signature(ours)
        raise InvalidParameter(
            f"{name}: {cls.__name__}.{attr}{taken} cannot be called as "
            f"({', '.join([*(p.name for p in places), *(f'{word}=' for word in named)])})."
        ) from None
