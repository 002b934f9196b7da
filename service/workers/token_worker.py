"""Runs packed token rows of one decoder in one forward, over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.paged_attention import Plan, RowGroup, paged_attention, plan_groups
from kernels.philox import uniform
from kernels.token_sampling import draw_tokens
from service.models.decoder import Decoder, DecoderConfig
from service.procedures.types import Reading, TokenRow
from service.workers.batch_invariant import TILE, make_batch_invariant
from service.workers.block_pool import BlockPool
from service.workers.paged_cache import PagedCache
from service.workers.purposes import TOKEN_DRAW
from service.workers.threads import Threads
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome


class PagedAttention:
    """The decoder's `Attention`: writes keys and values to the cache, then attends over every row's blocks.

    All rows write before any attends, so a later row of a request sees what an earlier one computes in this forward.
    """

    def __init__(
        self, config: DecoderConfig, cache: PagedCache, written: Tensor, groups: Mapping[int | None, Sequence[RowGroup]]
    ) -> None:
        """`groups` by window: layers with the same one share them."""
        self._config = config
        self._cache = cache
        self._written = written
        self._groups = groups

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.write(layer, self._written, key, value)
        groups, config = self._groups[self._config.layers[layer].window], self._config
        return paged_attention(query, self._cache.store[layer], groups, config.attention_scale, config.attention_softcap)


class TokenWorker:
    """One decoder's weights and cache on one device.

    `never` are token ids that must not be produced. With `batch_invariant` every number is computed in an order that
    depends on its own request alone: tiled matrix products, and causal queries that attend one by one, so that neither
    the batch nor a chunked prefill changes a bit. The network's layers are fused, in place.
    """

    def __init__(
        self, network: Decoder, pool: BlockPool, device: torch.device, threads: Threads, never: Sequence[int] = (),
        batch_invariant: bool = False,
    ) -> None:  # fmt: skip
        config = network.config
        network.fuse()
        self._threads = threads
        self._token_operations = 2.0 * sum(parameter.numel() for parameter in network.parameters())
        self.network = network
        self.device = device
        self.pool = pool
        self.cache = PagedCache(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, pool,
            network.dtype, device,
        )  # fmt: skip
        self._windows = {layer.window for layer in config.layers}
        self._batch_invariant = batch_invariant
        if batch_invariant:
            make_batch_invariant(network)
        self._never = torch.tensor(list(never), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        """One outcome a move: the readings of the last row's wanted positions, or why that move failed."""
        tokens: list[int] = []
        positions: list[int] = []
        written: list[int] = []
        plans: list[Plan] = []
        wanted: list[int] = []
        for move in moves:
            for row in move.rows:
                stop = row.start + len(row.tokens)
                plan = Plan(len(tokens), len(row.tokens), row.start, move.blocks, row.mode == "block")
                plans += _single_queries(plan) if self._batch_invariant and row.mode == "causal" else [plan]
                written += self.cache.slots(move.blocks, row.start, stop)
                if row is move.rows[-1]:
                    wanted.extend(len(tokens) + offset for offset in row.wanted)
                tokens.extend(row.tokens)
                positions.extend(range(row.start, stop))
        self._threads.take(self._token_operations * (TILE if self._batch_invariant else len(tokens)))
        groups = {window: self._groups(plans, window) for window in self._windows}
        attention = PagedAttention(self.network.config, self.cache, self._long(written), groups)
        hidden = self.network.hidden(self._long(tokens), self._long(positions), attention)
        if not wanted:
            return [[] for _ in moves]
        logits = self._logits(hidden[self._long(wanted)])
        return self._read(moves, logits)

    def _groups(self, plans: Sequence[Plan], window: int | None) -> list[RowGroup]:
        sets = [[plan] for plan in plans] if self._batch_invariant else [plans]
        return [group for some in sets for group in plan_groups(some, self.pool.block_size, window, self.device)]

    def _logits(self, hidden: Tensor) -> Tensor:
        if not self._batch_invariant:
            return self.network.logits(hidden)
        padded = F.pad(hidden, (0, 0, 0, -len(hidden) % TILE))
        return torch.cat([self.network.logits(tile) for tile in padded.split(TILE)])[: len(hidden)]

    def _long(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _read(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
        counts = [len(move.rows[-1].wanted) for move in moves]
        finite = torch.isfinite(logits).all(dim=-1).tolist()
        logits[:, self._never] = float("-inf")
        draws = [move.draws for move, count in zip(moves, counts, strict=True) for _ in range(count)]
        for i, draw in enumerate(draws):
            if draw.banned:
                logits[i, list(draw.banned)] = float("-inf")
            if draw.repetition_penalty != 1.0 and draw.seen:
                seen = logits[i, list(draw.seen)]
                penalised = torch.where(seen > 0, seen / draw.repetition_penalty, seen * draw.repetition_penalty)
                logits[i, list(draw.seen)] = penalised
        numbers = [_draw_number(row, offset) for row in (move.rows[-1] for move in moves) for offset in row.wanted]
        chosen, confidence = draw_tokens(
            logits,
            torch.tensor([draw.temperature for draw in draws], device=self.device),
            self._long([draw.top_k for draw in draws]),
            torch.tensor([draw.top_p for draw in draws], device=self.device),
            torch.tensor([draw.min_p for draw in draws], device=self.device),
            self._uniform(draws, numbers),
        )
        readings = [Reading(*pair) for pair in zip(chosen.tolist(), confidence.tolist(), strict=True)]
        outcomes: list[TokenOutcome] = []
        at = 0
        for move, count in zip(moves, counts, strict=True):
            if all(finite[at : at + count]):
                outcomes.append(readings[at : at + count])
            else:
                self.cache.clear(move.blocks)
                outcomes.append(RowError("the model's output for this request is not finite"))
            at += count
        return outcomes

    def _uniform(self, draws: Sequence[Draws], numbers: Sequence[int]) -> Tensor:
        """A number in (0, 1) for every draw; none are made when all are greedy."""
        if all(draw.temperature == 0 for draw in draws):
            return torch.zeros(len(draws), dtype=torch.float64, device=self.device)
        seeds = self._long([draw.seed for draw in draws])
        return uniform(seeds, self._long(numbers), TOKEN_DRAW, 1, dtype=torch.float64)[:, 0]


def _draw_number(row: TokenRow, offset: int) -> int:
    """Position of the token that is drawn, and in the high word which draw at that position this is."""
    position = row.start + offset + (1 if row.mode == "causal" else 0)
    return position | (row.draw << 32)


def _single_queries(plan: Plan) -> list[Plan]:
    """The same causal row, every query of it a row of its own."""
    return [Plan(plan.offset + i, 1, plan.start + i, plan.blocks, False) for i in range(plan.queries)]
