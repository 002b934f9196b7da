"""What the first rank of a divided model tells the others, over their standard input, and what they answer."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from service.workers.packed_rows import PackedRows

HEAD = 4
"""Bytes of a message's length, little-endian, before it."""


class Load(msgspec.Struct, tag=True, frozen=True):
    """Load the rank's part of what `--model` names; answered by Loaded. The model before it is forgotten."""

    model: str
    device: str
    kv_memory: int


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """`error` says why it cannot be served; empty when it can."""

    error: str = ""


class Serve(msgspec.Struct, tag=True, frozen=True):
    """Meet the other ranks by the file `store`, reserve a cache of so many blocks, and follow."""

    store: str
    blocks: int
    block_size: int
    few_threads: int
    every_thread: int
    batch_invariant: bool


class Run(msgspec.Struct, tag=True, frozen=True):
    """A forward of these rows; `embedded` are the inputs where that was told before."""

    packed: PackedRows
    embedded: bool


class Embed(msgspec.Struct, tag=True, frozen=True):
    """So many tokens, which rank 0 broadcasts: they may lie on its device alone."""

    count: int


class Move(msgspec.Struct, tag=True, frozen=True):
    """Copy keys and values of the cache's slots `sources` to `targets`."""

    sources: list[int]
    targets: list[int]


class Clear(msgspec.Struct, tag=True, frozen=True):
    """Forget what these blocks of the cache hold."""

    blocks: list[int]


ToRank = Load | Serve | Run | Embed | Move | Clear


def write(stream: BinaryIO, encoded: bytes) -> None:
    """Raises OSError where nobody reads any more."""
    stream.write(len(encoded).to_bytes(HEAD, "little") + encoded)
    stream.flush()


def read(stream: BinaryIO) -> bytes | None:
    """The next message; None where the other side has closed or is gone."""
    head = stream.read(HEAD)
    size = int.from_bytes(head, "little")
    body = stream.read(size) if len(head) == HEAD else b""
    return body if len(head) == HEAD and len(body) == size else None
