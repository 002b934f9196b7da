"""Which sizes of picture a model makes."""

from __future__ import annotations

import msgspec


class SizeRule(msgspec.Struct, frozen=True):
    """Sizes in pixels, (width, height). A model makes those of `listed`, or, where nothing is listed, every size whose sides
    are multiples of `multiple_of` between `smallest` and `largest` and whose area is at most `area`."""

    default: tuple[int, int]
    listed: tuple[tuple[int, int], ...] = ()
    multiple_of: int = 1
    smallest: int = 1
    largest: int = 4096
    area: int = 4096 * 4096

    @classmethod
    def only(cls, width: int, height: int) -> SizeRule:
        """One size and no other."""
        return cls((width, height), ((width, height),))

    def allows(self, width: int, height: int) -> bool:
        if self.listed:
            return (width, height) in self.listed
        sides_fit = all(self.smallest <= side <= self.largest and side % self.multiple_of == 0 for side in (width, height))
        return sides_fit and width * height <= self.area

    def describe(self) -> str:
        """What is allowed, for whoever asked for something else."""
        if self.listed:
            return ", ".join(f"{width}x{height}" for width, height in self.listed)
        return (
            f"WIDTHxHEIGHT, both multiples of {self.multiple_of} from {self.smallest} to {self.largest}, "
            f"at most {self.area} pixels; {self.default[0]}x{self.default[1]} by default"
        )
