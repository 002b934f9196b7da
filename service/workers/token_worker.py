"""Runs packed token rows of one decoder in one forward, over a paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.token_sampling import add_bias, apply_bitmask, draw_tokens, penalise, plain_logprobs, spread
from service.models.decoder import Decoder
from service.models.decoder_serving import kernel_decoder
from service.procedures.drafts import accepted
from service.procedures.types import Reading, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.forward import Forward
from service.workers.kernel_forward import KernelForward
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.purposes import TOKEN_DRAW
from service.workers.threads import Threads
from service.workers.torch_forward import TorchForward
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome, TokenRead


class TokenWorker:
    """One decoder's weights and cache on one device.

    `never` are token ids that must not be produced. With `batch_invariant` every number is computed in an order that
    depends on its own request alone, so that neither the batch nor a chunked prefill changes a bit. The network is taken
    over: its layers are fused in place, or its weights packed for the CPU kernel.
    """

    def __init__(
        self, network: Decoder, pool: BlockPool, device: torch.device, threads: Threads, never: Sequence[int] = (),
        batch_invariant: bool = False,
    ) -> None:  # fmt: skip
        config = network.config
        network.fuse()
        self._threads = threads
        self.device = device
        self.pool = pool
        self.cache = PagedCache(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, pool,
            network.dtype, device,
        )  # fmt: skip
        kernel = kernel_decoder(network, self.cache.store)
        self.run_by = "torch" if kernel is None else "the CPU kernel"
        self._forward: Forward = (
            TorchForward(network, self.cache, threads, batch_invariant) if kernel is None else KernelForward(kernel, threads)
        )
        self._never = torch.tensor(list(never), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        """One outcome a move: the readings of the last row's wanted positions, or why that move failed."""
        packed = PackedRows.of(moves, self.pool.block_size)
        output = self._forward(packed)
        sound = output.finite.tolist()
        outcomes: list[TokenOutcome] = self._read(moves, output.logits) if packed.wanted else [TokenRead() for _ in moves]
        at = 0
        for i, move in enumerate(moves):
            size = sum(len(row.tokens) for row in move.rows)
            # What a chunk of a prefill leaves for others is looked at too, not only what is read.
            if isinstance(outcomes[i], RowError) or not all(sound[at : at + size]):
                self._clear(move.blocks)
                outcomes[i] = RowError("the model's output for this request is not finite")
            at += size
        self._settle(moves, outcomes)
        return outcomes

    def _settle(self, moves: Sequence[TokenMove], outcomes: Sequence[TokenOutcome]) -> None:
        """Bring what was computed of the right guesses of a tree to their positions."""
        sources: list[int] = []
        targets: list[int] = []
        size = self.pool.block_size
        for move, outcome in zip(moves, outcomes, strict=True):
            row = move.rows[-1]
            if row.mode != "tree" or isinstance(outcome, RowError):
                continue
            path = accepted(row.draft(), [reading.token for reading in outcome.readings])
            for depth, guess in enumerate(path):
                if guess != depth:
                    for place, slots in ((guess, sources), (depth, targets)):
                        block, within = divmod(row.start + 1 + place, size)
                        slots.append(move.blocks[block] * size + within)
        if sources:
            self.cache.move(sources, targets)

    def _clear(self, blocks: Sequence[int]) -> None:
        """Forget a failed request's numbers, but for blocks that others hold too: those were sound when they were shared."""
        self.cache.clear([block for block in blocks if self.pool.holders(block) == 1])

    def _long(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _read(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
        counts = [len(move.rows[-1].wanted) for move in moves]
        finite = torch.isfinite(logits.sum(dim=-1)).tolist()
        draws = [draw for move in moves for draw in move.every_draw()]
        plain = logits.clone() if any(draw.logprobs is not None for draw in draws) else logits
        logits[:, self._never] = float("-inf")
        numbers = [_draw_number(row, offset) for row in (move.rows[-1] for move in moves) for offset in row.wanted]
        self._adjust(draws, [number & 0xFFFFFFFF for number in numbers], logits)
        chosen, confidence = draw_tokens(
            logits,
            torch.tensor([draw.temperature for draw in draws], device=self.device),
            self._long([draw.top_k for draw in draws]),
            torch.tensor([draw.top_p for draw in draws], device=self.device),
            torch.tensor([draw.min_p for draw in draws], device=self.device),
            self._long([draw.seed for draw in draws]),
            self._long(numbers),
            TOKEN_DRAW,
            self._threads.every,
        )
        readings = [Reading(*pair) for pair in zip(chosen.tolist(), confidence.tolist(), strict=True)]
        for i, reading in self._logprobs(draws, plain, chosen):
            readings[i] = replace(readings[i], logprob=reading[0], top=reading[1])
        for i, entropy, margin in self._spread(moves, draws, logits):
            readings[i] = replace(readings[i], entropy=entropy, margin=margin)
        outcomes: list[TokenOutcome] = []
        at = 0
        for count in counts:
            whole = all(finite[at : at + count])
            outcomes.append(TokenRead(readings[at : at + count]) if whole else RowError("the logits are not finite"))
            at += count
        return outcomes

    def _adjust(self, draws: Sequence[Draws], positions: Sequence[int], logits: Tensor) -> None:
        """Penalties, biases and grammars, each for all the rows that have them at once."""
        penalised = [(i, draw.penalties) for i, draw in enumerate(draws) if draw.penalties is not None]
        if penalised:
            sizes = [len(penalty.seen.tokens) for _, penalty in penalised]
            factors = [(i, p.repetition, p.presence, p.frequency) for i, p in penalised]
            row, repetition, presence, frequency = (np.repeat(column, sizes) for column in zip(*factors, strict=True))
            token = np.concatenate([penalty.seen.tokens for _, penalty in penalised])
            count = np.concatenate([penalty.seen.counts for _, penalty in penalised])
            penalise(logits, *(self._array(a) for a in (row, token)), *(
                self._array(a, torch.float32) for a in (count, repetition, presence, frequency)
            ))  # fmt: skip
        biases = [(i, token, value) for i, draw in enumerate(draws) for token, value in draw.bias.items()]
        early = [(i, draw.banned) for i, draw in enumerate(draws) if positions[i] < draw.floor]
        biases += [(i, token, float("-inf")) for i, banned in early for token in banned]
        if biases:
            rows, tokens, values = zip(*biases, strict=True)
            add_bias(logits, self._long(rows), self._long(tokens), torch.tensor(values, device=self.device))
        masked = [i for i, draw in enumerate(draws) if draw.allowed]
        if masked:
            bits = np.frombuffer(b"".join(draws[i].allowed for i in masked), np.uint8).reshape(len(masked), -1)
            apply_bitmask(logits, self._long(masked), self._array(bits.copy()))

    def _logprobs(
        self, draws: Sequence[Draws], plain: Tensor, chosen: Tensor
    ) -> Iterator[tuple[int, tuple[float, tuple[tuple[int, float], ...]]]]:
        """Index of every draw that asked for them, its log-probability, and the likeliest tokens with theirs."""
        asked = [(i, draw.logprobs) for i, draw in enumerate(draws) if draw.logprobs is not None]
        if not asked:
            return
        row = self._long([i for i, _ in asked])
        most = max(count for _, count in asked)
        own, top, tokens = (part.tolist() for part in plain_logprobs(plain, row, chosen[row], most, self._never))
        for (i, count), logprob, likeliest, ids in zip(asked, own, top, tokens, strict=True):
            yield i, (logprob, tuple(zip(ids[:count], likeliest[:count], strict=True)))

    def _spread(self, moves: Sequence[TokenMove], draws: Sequence[Draws], logits: Tensor) -> Iterator[tuple[int, float, float]]:
        """Index of every reading whose row asked, its entropy and its margin."""
        asked = [row.spread for row in (move.rows[-1] for move in moves) for _ in row.wanted]
        rows = [i for i, wanted in enumerate(asked) if wanted]
        if rows:
            temperature = torch.tensor([draws[i].temperature for i in rows], device=self.device)
            entropy, margin = spread(logits[self._long(rows)], temperature, self._threads.every)
            yield from zip(rows, entropy.tolist(), margin.tolist(), strict=True)

    def _array(self, values: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(values).to(device=self.device, dtype=dtype)


def _draw_number(row: TokenRow, offset: int) -> int:
    """Position of the token that is drawn, and in the high word which draw at that position this is."""
    own = offset >= len(row.tokens) - row.asks if row.mode == "tree" else not row.reads_next
    return (row.positions[offset] + (not own)) | (row.draw << 32)
