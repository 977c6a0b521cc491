"""A strategy to begin with: ``make strategy NAME=x``.

What is written passes lint and the laws as it stands, so that whatever breaks is yours.
"""

from __future__ import annotations

import sys
from keyword import iskeyword
from pathlib import Path

from halludecode.core.errors import HalluDecodeError, InvalidParameter
from halludecode.core.registry import STRATEGIES

FOLDER = Path(__file__).parents[2] / "halludecode" / "strategies"
TEMPLATE = '''"""NAME: what it does, in a line (Author et al., VENUE YEAR, arXiv:0000.00000).

    z = (1 + alpha) * l(v) - alpha * l(no v),   keep y with  p(y | v) >= beta * max p(. | v)

What the equations leave open: what was read into them, where the official code differs, what is
ours. These lines are what `halludecode list` shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from halludecode.core.branch import Branch
from halludecode.core.logits import contrast
from halludecode.core.strategy import ModelInfo, Paper, Prompt, State, Strategy, param, strategy

if TYPE_CHECKING:
    from torch import Tensor

    from halludecode.core.step import Step

PAPER = Paper(
    arxiv="0000.00000",
    title="Title of the paper",
    authors="Last, First and Last, First",
    venue="Venue",
    year=2026,
)


@strategy("name", paper=PAPER, off={"alpha": 0.0, "beta": 0.0})
class Name(Strategy):
    """What it does, in other words."""

    alpha: float = param(1.0, "contrast strength", ge=0)
    beta: float = param(0.1, "plausibility cut-off", ge=0, le=1)

    def branches(self, prompt: Prompt, state: State, m: ModelInfo) -> Mapping[str, Branch]:
        """The prompt without its images."""
        return {"blind": Branch(prompt.without_images())}

    def combine(self, step: Step) -> Tensor:
        """What the image adds counts double, among plausible tokens."""
        mixed = contrast(step["main"], step["blind"], self.alpha)
        return step.plausible(mixed, self.beta)
'''


def text(name: str) -> str:
    """The file of a strategy.

    Raises:
        InvalidParameter: The name is no plain word, too long for a line, or taken.
    """
    plain = name.isidentifier() and name == name.lower() and name[0] != "_"
    if not plain or iskeyword(name) or len(name) > 24:
        raise InvalidParameter(
            f"NAME={name}: a strategy's name is at most 24 lower-case letters, digits and _."
        )
    if name in STRATEGIES.names():
        raise InvalidParameter(f"NAME={name}: there is such a strategy; see `list {name}`.")
    made = TEMPLATE.replace("NAME:", f"{name}:").replace('"name"', f'"{name}"')
    return made.replace("Name(", f"{name.title().replace('_', '')}(")


def main() -> None:
    """Write the file and say what comes next."""
    try:
        (name,) = sys.argv[1:] or ("",)
        path = FOLDER / f"{name}.py"
        made = text(name)
    except (ValueError, HalluDecodeError) as error:
        sys.exit(str(error) if isinstance(error, HalluDecodeError) else "Give one NAME.")
    path.write_text(made, encoding="utf-8")
    sys.stdout.write(
        f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}: yours now\n"
        f"make laws NAME={name}    lint and every law, after every change\n"
        f"make record NAME={name}  its lines in README.md, at the end\n"
    )


if __name__ == "__main__":
    main()
