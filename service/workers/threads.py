"""How many CPU threads a forward gets."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

LONG = 5e8


@dataclass(frozen=True)
class Threads:
    """`few` for a short forward, which would spend its time waiting for threads, `every` one for a long one.

    A short forward also leaves a processor to the front end, which has tokens to send while it runs.
    """

    few: int
    every: int

    @classmethod
    def of(cls, setting: int) -> Threads:
        """From the setting `threads`; 0 is all processors for long forwards, and one less for short ones."""
        if setting:
            return cls(setting, setting)
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(max(1, processors - 1), processors)

    def shared(self, ranks: int) -> Threads:
        """Of one of several processes that run at the same time."""
        return Threads(max(1, self.few // ranks), max(1, self.every // ranks))

    def take(self, operations: float) -> None:
        """Use as many for a forward of so many floating-point operations as it is worth."""
        wanted = self.every if operations >= LONG else self.few
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)

    def leave_to_kernel(self) -> None:
        """torch's own threads stay away from a forward that brings its own: they would spin on the same processors."""
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
