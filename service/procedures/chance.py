"""Random numbers of a procedure's own decisions: functions of (seed, position, draw, purpose), with no stream behind them.

Tokens are drawn by the workers (Philox); what a procedure decides by lot is decided here, without a device.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from hashlib import blake2b


class Purpose(IntEnum):
    NOISE = 1
    ROUTE = 2
    UNMASK = 3
    RESAMPLE = 4
    ORDER = 5


def uniform(seed: int, position: int, draw: int, purpose: Purpose) -> float:
    """A number in (0, 1), a multiple of 2^-53 but for half of one: 53 bits of BLAKE2b over the four words."""
    words = struct.pack("<QQQQ", seed, position, draw, purpose)
    return ((int.from_bytes(blake2b(words, digest_size=8).digest(), "little") >> 11) + 0.5) * 2.0**-53
