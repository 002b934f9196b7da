"""The streams of one device: forwards run on the main one, what must not hold them up beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

Line = str
"""A name of what runs beside the forwards: lines do not wait for one another."""

HIGH, LOW = -1, 0
"""Priorities of streams: a lower number goes first, and 0 is the lowest that there is."""


class Streams:
    """Of a CUDA device: a main stream of high priority, and one of low priority for every line. On a CPU all of them are the
    thread that calls.

    No stream ever waits for another: what one reads of another's work, the host has waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._lines: dict[Line, torch.cuda.Stream] = {}
        if self._cuda:
            self._main = torch.cuda.Stream(device, priority=HIGH)
            self._main.wait_stream(torch.cuda.default_stream(device))

    @contextmanager
    def main(self) -> Iterator[None]:
        """What is launched within it runs on the main stream."""
        if not self._cuda:
            yield
            return
        with torch.cuda.stream(self._main):
            yield

    @contextmanager
    def beside(self, line: Line) -> Iterator[bool]:
        """What is launched within it runs beside the main stream; whether it really does."""
        if not self._cuda:
            yield False
            return
        if line not in self._lines:
            self._lines[line] = torch.cuda.Stream(self.device, priority=LOW)
            self._lines[line].wait_stream(torch.cuda.default_stream(self.device))
        with torch.cuda.stream(self._lines[line]):
            yield True

    def hand_over(self, tensor: Tensor) -> Tensor:
        """What a line made and the main stream will read: its memory is not used again before the main stream is done."""
        if self._cuda:
            tensor.record_stream(self._main)
        return tensor

    def settle(self) -> None:
        """All that the default stream was given, as weights and memory set to 0, is there before anything is launched."""
        if self._cuda:
            torch.cuda.synchronize(self.device)


@cache
def streams_of(device: torch.device) -> Streams:
    """One set of streams a device, whatever models lie there."""
    return Streams(device)
