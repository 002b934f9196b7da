"""Reuse between steps: where a request's first block says much the same as last time, the other blocks are not run.

The first block of a transformer is run for every row. Where its residual (what it adds to its input) differs from that of
the row's last full evaluation by at most a threshold, in relative L1 distance, the rest of the network would add nearly what
it added then, and that is added instead (first-block cache of ParaAttention; TeaCache, arXiv 2411.19108, is its relative with
a fitted polynomial). Every row decides for itself, so the rows of a batch reuse at different steps: block 0 runs on all of
them, the others on those that go on.

What is remembered belongs to a row of a request, never to the network: two to four times the size of the row's hidden states.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from service.models import row_subset
from service.models.reuse_memory import Added, Memory, Reuse, relative_change

__all__ = ["Reuse", "reusable", "reusing"]

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "layers", "blocks")
"""Names of the lists of blocks that a network runs one behind the other, in that order. Refiners before them are always run."""

UNBATCHED = ("image_rotary_emb", "rotation")
"""Arguments of blocks that are the same for all rows, whatever their first dimension is: tables of positions."""

MASKS = ("attn_mask", "mask")
"""Arguments of blocks that say which tokens of their one sequence are no padding, which stands behind the others."""


def reusable(network: nn.Module) -> bool:
    """Whether the network has lists of blocks that can be skipped."""
    lists = _lists(network)
    return bool(lists) and sum(map(len, lists)) > 1


@contextmanager
def reusing(network: nn.Module, rows: Sequence[Reuse | None]) -> Iterator[None]:
    """For one call of `network` in which row i of the batch is `rows[i]`'s (None: it neither reuses nor remembers).

    What the rows remember changes when the call has succeeded, and only then. Raises ValueError for a network without
    blocks to skip.
    """
    if all(row is None or row.threshold == 0.0 for row in rows):
        yield
        return
    if not reusable(network):
        raise ValueError(f"{type(network).__name__} has no blocks whose outputs could be reused")
    evaluation = _Evaluation(rows)
    blocks = [block for blocks in _lists(network) for block in blocks]
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for number, stack in enumerate(_lists(network)):
            for place, block in enumerate(stack):
                run = _Block(
                    block.forward, _signature(type(block).forward), number, place == 0, place == len(stack) - 1, evaluation
                )
                block.forward = run
        yield
    finally:
        for block, former in zip(blocks, before, strict=True):
            if former is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = former
    evaluation.finish()


def _lists(network: nn.Module) -> list[nn.ModuleList]:
    found = [getattr(network, name, None) for name in BLOCK_LISTS]
    return [blocks for blocks in found if isinstance(blocks, nn.ModuleList) and len(blocks)]


Streams = tuple[Tensor | None, ...]
"""What a block gives: (hidden_states,), or (encoder_hidden_states, hidden_states) as diffusers' joint blocks do; [R, S, d]."""


@dataclass
class _Evaluation:
    """One call of the network: who goes on behind the first block, and what it adds."""

    rows: Sequence[Reuse | None]
    going: list[int] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    entered: Streams = ()
    added: list[list[tuple[Added | None, ...]]] = field(default_factory=list)

    @property
    def all_go(self) -> bool:
        return len(self.going) == len(self.rows)

    def remembers(self, row: int) -> bool:
        """Whether what is computed of this row is kept for its next evaluations."""
        return self._threshold(row) > 0.0

    def decide(self, residual: Tensor, mask: Tensor | None) -> None:
        """From what the first block added to its tokens, [R, S, d]; `mask` bool [R, S]: which of them are the row's, from the
        first on, and no padding."""
        if len(residual) != len(self.rows):
            raise ValueError(f"{len(residual)} rows are evaluated, but {len(self.rows)} were announced")
        lengths = [residual.shape[1]] * len(residual) if mask is None else mask.sum(dim=1).tolist()
        self.first = [row[:length] for row, length in zip(residual, lengths, strict=True)]
        known = [i for i in range(len(self.rows)) if self._comparable(i)]
        changes = [relative_change(self.first[i], self.memory(i).first) for i in known]
        found = torch.stack(changes).tolist() if changes else []
        reusing = {i for i, change in zip(known, found, strict=True) if change <= self._threshold(i)}
        self.going = [i for i in range(len(self.rows)) if i not in reusing]

    def _threshold(self, row: int) -> float:
        reuse = self.rows[row]
        return 0.0 if reuse is None else reuse.threshold

    def _comparable(self, row: int) -> bool:
        """Whether the row remembers an evaluation of as many tokens."""
        reuse = self.rows[row]
        remembered = self.remembers(row) and reuse is not None and reuse.memory is not None
        return remembered and self.memory(row).first.shape == self.first[row].shape

    def memory(self, row: int) -> Memory:
        reuse = self.rows[row]
        assert reuse is not None and reuse.memory is not None, "a row that does not go on remembers"
        return reuse.memory

    def finish(self) -> None:
        """Raises ValueError where the network did not run its blocks."""
        if not self.first:
            raise ValueError("no block of the network was run")
        for i, row in enumerate(self.rows):
            if row is None or not self.remembers(i):
                continue
            if i not in self.going:
                row.reused += 1
                continue
            at = self.going.index(i)
            row.memory = Memory(self.first[i].clone(), tuple(of_list[at] for of_list in self.added))


@dataclass(frozen=True)
class _Block:
    """Stands in for one block's `forward`: the first block of the first list decides, the last of each list adds what was
    added last time for those that did not go on."""

    original: Callable[..., Any]
    signature: inspect.Signature
    number: int
    first: bool
    last: bool
    evaluation: _Evaluation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        evaluation = self.evaluation
        bound = self.signature.bind(*args, **kwargs)
        arguments = bound.arguments
        if self.number == 0 and self.first:
            hidden = _hidden(arguments)
            given = self.original(*args, **kwargs)
            streams = _streams(given)
            after = streams[-1]
            assert after is not None
            length = min(hidden.shape[1], after.shape[1])
            mask = _mask(arguments, hidden)
            evaluation.decide(after[:, :length] - hidden[:, :length], None if mask is None else mask[:, :length])
            evaluation.entered = streams
            return given
        given = self._of_those_that_go(bound)
        if self.first:
            evaluation.entered = _entering(arguments, self._count(given))
        streams = _entering(arguments, self._count(None)) if given is None else _streams(given)
        if self.last:
            streams = self._with_the_rest(streams)
        elif not evaluation.all_go and given is not None:
            streams = _put(_entering(arguments, len(streams)), streams, evaluation.going)
        return streams[0] if len(streams) == 1 else streams

    def _of_those_that_go(self, bound: inspect.BoundArguments) -> Any:
        """The block's output for the rows that go on; None when there are none."""
        evaluation = self.evaluation
        if evaluation.all_go:
            return self.original(*bound.args, **bound.kwargs)
        if not evaluation.going:
            return None
        index = torch.tensor(evaluation.going, device=_hidden(bound.arguments).device)
        parts = {
            name: value if name in UNBATCHED else _rows(value, index, len(evaluation.rows))
            for name, value in bound.arguments.items()
        }
        theirs = inspect.BoundArguments(self.signature, OrderedDict(parts))
        with row_subset.only(evaluation.going):
            return self.original(*theirs.args, **theirs.kwargs)

    def _count(self, given: Any) -> int:
        """How many streams this list's blocks give, said by what they gave, or by what a row remembers."""
        if given is not None:
            return len(_streams(given))
        return len(self.evaluation.memory(0).rest[self._behind])

    @property
    def _behind(self) -> int:
        """The number of this list among those with blocks behind the first one of all."""
        return len(self.evaluation.added)

    def _with_the_rest(self, streams: Streams) -> Streams:
        """All rows' streams behind the list's last block; notes what those that went on were given."""
        evaluation = self.evaluation
        rows = range(len(evaluation.rows))
        whole: list[Tensor | None] = []
        noted: list[list[Added | None]] = [[] for _ in evaluation.going]
        for stream, (entered, behind) in enumerate(zip(evaluation.entered, streams, strict=True)):
            remembered = {i: evaluation.memory(i).rest[self._behind][stream] for i in rows if i not in evaluation.going}
            if behind is None or any(added is None for added in remembered.values()):
                whole.append(None)
                for note in noted:
                    note.append(None)
                continue
            assert entered is not None
            out: list[Tensor] = []
            for i in rows:
                added = remembered.get(i)
                if added is not None:
                    out.append(added.to(entered[i]))
                    continue
                at = evaluation.going.index(i)
                if evaluation.remembers(i):
                    residual = behind[at] - entered[i, : behind.shape[1]]
                    noted[at].append(Added(residual, shortened=behind.shape[1] < entered.shape[1]))
                out.append(behind[at])
            whole.append(behind if evaluation.all_go else torch.stack(out))
        evaluation.added.append([tuple(note) for note in noted])
        return tuple(whole)


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Of the class's method, without `self`: what stands in for an instance's `forward` may take any arguments."""
    own = inspect.signature(forward)
    return own.replace(parameters=list(own.parameters.values())[1:])


def _hidden(arguments: dict[str, Any]) -> Tensor:
    """The picture's tokens [R, S, d] among a block's arguments."""
    value = arguments["hidden_states"] if "hidden_states" in arguments else next(iter(arguments.values()))
    assert isinstance(value, Tensor)
    return value


def _mask(arguments: dict[str, Any], hidden: Tensor) -> Tensor | None:
    """Which tokens [R, S] of the sequence are no padding, where the block is told."""
    for name in MASKS:
        mask = arguments.get(name)
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() == hidden.shape[0] * hidden.shape[1]:
            return mask.reshape(hidden.shape[:2])
    return None


def _streams(given: Any) -> Streams:
    return given if isinstance(given, tuple) else (given,)


def _entering(arguments: dict[str, Any], count: int) -> Streams:
    """The streams among a block's arguments, in the order in which it gives them."""
    return (_hidden(arguments),) if count == 1 else (arguments["encoder_hidden_states"], _hidden(arguments))


def _rows(value: Any, index: Tensor, rows: int) -> Any:
    """Those rows of every tensor that has a row each, also inside tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value[index] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, tuple | list):
        return type(value)(_rows(part, index, rows) for part in value)
    if isinstance(value, dict):
        return {key: part if key in UNBATCHED else _rows(part, index, rows) for key, part in value.items()}
    return value


def _put(whole: Streams, parts: Streams, going: list[int]) -> Streams:
    """The rows' streams with those of the rows that went on put in their places."""
    placed: list[Tensor | None] = []
    for stream, part in zip(whole, parts, strict=True):
        if stream is None or part is None:
            placed.append(part)
        else:
            placed.append(stream.index_copy(0, torch.tensor(going, device=stream.device), part))
    return tuple(placed)
