"""Where a strategy comes from, and how to cite it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Paper:
    """Where a strategy comes from; `bibtex` is what `halludecode cite` prints."""

    arxiv: str  # "" for a paper that is not there
    title: str
    authors: str  # "Last, First and Last, First"
    venue: str
    year: int
    openreview: str = ""

    @property
    def number(self) -> str:
        """The paper's number, with the archive it is in."""
        return f"arXiv:{self.arxiv}" if self.arxiv else f"OpenReview {self.openreview}"

    @property
    def url(self) -> str:
        """Where it can be read."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://openreview.net/forum?id={self.openreview}"

    def bibtex(self, key: str) -> str:
        """A BibTeX entry under ``key``."""
        place = f"  url       = {{{self.url}}},\n"
        if self.arxiv:
            place = f"  eprint    = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}},\n"
        return (
            f"@inproceedings{{{key},\n"
            f"  title     = {{{{{self.title}}}}},\n"
            f"  author    = {{{self.authors}}},\n"
            f"  booktitle = {{{self.venue}}},\n"
            f"  year      = {{{self.year}}},\n"
            f"{place}"
            "}"
        )
