"""What kinds of draw a batch may have, as the host knows it: a GPU then leaves out passes that no row needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kinds:
    """Whether any row is drawn rather than greedy, and has each filter. True where it is not known: rows that turn out not
    to need a pass leave it at once."""

    drawn: bool = True
    top_k: bool = True
    top_p: bool = True
    min_p: bool = True

    @property
    def filtered(self) -> bool:
        return self.drawn and (self.top_k or self.top_p or self.min_p)


EVERY_KIND = Kinds()
