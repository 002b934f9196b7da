"""The classes of a class-conditional model, as a prompt names them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches


class ClassLabels:
    """Numbers from 0 on, names where the model has some, and the class of the empty prompt where there is one.

    names: of each class, several parted by commas ("tench, Tinca tinca"). null: the number that stands for no class.
    """

    def __init__(self, classes: int, names: Mapping[int, str], null: int | None) -> None:
        self.classes, self.null = classes, null
        self._numbers: dict[str, set[int]] = {}
        for number, text in names.items():
            for name in {text, *text.split(",")}:
                self._numbers.setdefault(_folded(name), set()).add(number)

    def number(self, prompt: str) -> int:
        """Raises ValueError, in words for a client, for a prompt that is no class of this model."""
        name = _folded(prompt)
        if not name:
            if self.null is None:
                raise ValueError("this model has no class for an empty prompt, and so no guidance by one: name a class")
            return self.null
        if name.isascii() and name.isdecimal():
            if len(name) > 9 or int(name) >= self.classes:
                raise ValueError(f"the prompt must be a class from 0 to {self.classes - 1}, not {prompt:.80}")
            return int(name)
        found = self._numbers.get(name)
        if found is None:
            raise ValueError(f"the prompt must be a class, {self._allowed()}, not {prompt:.80}{self._suggestion(name)}")
        if len(found) > 1:
            numbers = " and ".join(map(str, sorted(found)))
            raise ValueError(f"{prompt:.80} is the name of classes {numbers}: give the number")
        return next(iter(found))

    def _allowed(self) -> str:
        numbers = f"a number from 0 to {self.classes - 1}"
        return f"{numbers} or a name" if self._numbers else numbers

    def _suggestion(self, name: str) -> str:
        close = get_close_matches(name[:80], self._numbers, n=3)
        return f" (did you mean {', '.join(close)}?)" if close else ""


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())
