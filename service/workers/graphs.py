"""Forwards that are captured once, at a few numbers of rows, and replayed: the host then launches one graph instead of hundreds
of kernels.

A captured forward reads and writes the same memory each time. What a batch brings is copied there, rows that are missing up to
the next captured number are padding, and what it gives is there to be read until the next replay of the same capture.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from torch import Tensor

from kernels.capture import Capture


class CapturedRows:
    """A function of tensors with a row each, captured at `sizes`. `padding` is a row of every input, what those hold that are
    missing: whatever is computed of it must leave no trace and is given to nobody."""

    def __init__(
        self, function: Callable[..., Tensor], padding: Sequence[Tensor], sizes: Sequence[int], capture: Capture
    ) -> None:
        """`function` takes the number of rows and then the inputs, and gives a tensor with a row each."""
        self.sizes = sorted(sizes)
        self._function = function
        self._padding = list(padding)
        self._inputs = [row.expand(self.sizes[-1], *row.shape).contiguous() for row in padding]
        self._capture = capture
        self._captured: dict[int, tuple[Tensor, Callable[[], None]]] = {}

    def prepare(self) -> None:
        """Capture every size, the largest first: the others find its memory in the pool."""
        for size in reversed(self.sizes):
            self._at(size)

    def size_for(self, rows: int) -> int | None:
        """The captured number of rows that so many are filled up to; None where they are more than was captured."""
        at = bisect_left(self.sizes, rows)
        return self.sizes[at] if rows > 0 and at < len(self.sizes) else None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The rows of these inputs, which are as many as some captured size has room for; to be read, or copied, before the
        next call."""
        rows = len(inputs[0])
        size = self.size_for(rows)
        assert size is not None, f"{rows} rows, and no more than {self.sizes[-1]} were captured"
        given, replay = self._at(size)
        for buffer, padding, tensor in zip(self._inputs, self._padding, inputs, strict=True):
            buffer[:rows].copy_(tensor)
            buffer[rows:size].copy_(padding.expand(size - rows, *padding.shape))
        replay()
        return given[:rows]

    def _at(self, size: int) -> tuple[Tensor, Callable[[], None]]:
        if size not in self._captured:
            inputs = [buffer[:size] for buffer in self._inputs]
            for buffer, padding in zip(inputs, self._padding, strict=True):
                buffer.copy_(padding.expand_as(buffer))
            self._captured[size] = self._capture(lambda: self._function(size, *inputs))
        return self._captured[size]


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, 8, then every eighth number, and from 64 on every thirty-second: few captures, and little padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, most + 32, 32)]
    return [size for size in sizes if size < most] + [most]
