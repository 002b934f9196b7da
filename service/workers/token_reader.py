"""What a network said at the positions that were asked for: tokens drawn there, and how sure it was of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import canvas_step
from kernels.token_sampling import COLDEST, Kinds, add_bias, apply_bitmask, draw_tokens, penalise, plain_logprobs
from service.procedures.types import TokenRow
from service.workers.pending import fetched
from service.workers.purposes import TOKEN_DRAW
from service.workers.staging import staged, to_device
from service.workers.threads import Threads
from service.workers.types import Draws, TokenMove
from service.workers.unread import Drawn, Likelihoods, Scored, Spread, Unread

SCORED_PIECE = 64


class TokenReader:
    """Reads the logits of many moves at once, each in its own way. `never` are token ids that must not be produced."""

    def __init__(self, never: Sequence[int], device: torch.device, threads: Threads) -> None:
        self.device = device
        self._never = self._long(never)
        self._threads = threads

    def read(self, moves: Sequence[TokenMove], logits: Tensor) -> Unread:
        """logits float32 [W, vocabulary] of the wanted positions of every move's last row, which are changed. Nothing waits for
        the device: what was read comes with `Unread.outcomes`."""
        counts = [len(move.rows[-1].wanted) for move in moves]
        scoring = [i for i, move in enumerate(moves) if move.rows[-1].scored]
        drawing = [i for i, count in enumerate(counts) if count and i not in scoring]
        scored: dict[int, list[Scored]] = {}
        if scoring:
            parts = logits.split(counts)
            scored = {i: self._scored(moves[i], parts[i]) for i in scoring}
            logits = torch.cat([parts[i] for i in drawing]) if drawing else logits[:0]
        places, at = dict[int, int](), 0
        for i in drawing:
            places[i] = at
            at += counts[i]
        if not drawing:
            return Unread(moves, None, None, {}, scored)
        drawn, chosen = self._drawn([moves[i] for i in drawing], logits)
        return Unread(moves, drawn, chosen, places, scored)

    def _scored(self, move: TokenMove, logits: Tensor) -> list[Scored]:
        """What a move asks of tokens that are known: piece by piece, since each takes several times its logits' room."""
        names, most, pieces = move.rows[-1].scored, move.draws.logprobs or 0, list[Scored]()
        (tokens,), _ = staged(self.device, [names])
        for at in range(0, len(names), SCORED_PIECE):
            part, known = logits[at : at + SCORED_PIECE], tokens[at : at + SCORED_PIECE]
            row = torch.arange(len(part), device=self.device)
            finite = torch.isfinite(part.sum(dim=-1))
            told = map(fetched, (finite, *plain_logprobs(part, row, known, most, self._never)))
            pieces.append(Scored(names[at : at + SCORED_PIECE], *told))
        return pieces

    def _drawn(self, moves: Sequence[TokenMove], logits: Tensor) -> tuple[Drawn, Tensor]:
        finite = torch.isfinite(logits.sum(dim=-1))
        draws = [draw.heated(move.rows[-1].heat) for move in moves for draw in move.every_draw()]
        plain = logits.clone() if any(draw.logprobs is not None for draw in draws) else logits
        numbers = [_draw_number(row, offset) for row in (move.rows[-1] for move in moves) for offset in row.wanted]
        chosen, confidence, spread = self._draw_and_measure(moves, draws, logits, numbers)
        likelihoods = self._likelihoods(draws, plain, chosen)
        return Drawn(fetched(finite), fetched(chosen), fetched(confidence), likelihoods, spread), chosen

    def _draw_and_measure(
        self, moves: Sequence[TokenMove], draws: Sequence[Draws], logits: Tensor, numbers: Sequence[int]
    ) -> tuple[Tensor, Tensor, Spread | None]:
        """Tokens and their plain probabilities, and how sure the network was where a row asked for that."""
        asked = [(move.rows[-1], draw) for move in moves for draw in move.every_draw()]
        rows = [i for i, (row, _) in enumerate(asked) if row.spread]
        if not rows:
            return *self._draw(draws, logits, numbers), None
        self._adjust(draws, numbers, logits)
        (index,), (warmths,) = staged(self.device, [rows], [[warmth(asked[i][1], asked[i][0].heat) for i in rows]])
        columns = self._columns(draws, numbers)
        read = canvas_step.read(logits, *columns, TOKEN_DRAW, index, warmths, self._threads.every, _kinds(draws))
        return read.token, read.confidence, Spread(rows, *map(fetched, (read.entropy, read.margin, read.likeliest)))

    def guess(
        self, draws: Sequence[Draws], logits: Tensor, numbers: Sequence[int], widths: Sequence[int]
    ) -> list[list[int]]:
        """Tokens for each row of a drafter's logits, which are changed, best first: each is what would be drawn if those
        before it were banned. What a grammar allows behind guesses is not known to it."""
        draws = [replace(draw, allowed=b"") if draw.allowed else draw for draw in draws]
        guesses = [[token] for token in self._draw(draws, logits, numbers)[0].tolist()]
        for rank in range(1, max(widths, default=1)):
            rows = [i for i, width in enumerate(widths) if width > rank]
            logits[rows, [guesses[i][-1] for i in rows]] = float("-inf")
            next_best = self._choose([draws[i] for i in rows], logits[rows], [numbers[i] for i in rows])[0]
            for i, token in zip(rows, next_best.tolist(), strict=True):
                guesses[i].append(token)
        return guesses

    def _draw(self, draws: Sequence[Draws], logits: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One token a row of the logits, which are changed, and its plain probability."""
        self._adjust(draws, numbers, logits)
        return self._choose(draws, logits, numbers)

    def _choose(self, draws: Sequence[Draws], logits: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return draw_tokens(logits, *self._columns(draws, numbers), TOKEN_DRAW, self._threads.every, _kinds(draws))

    def _columns(self, draws: Sequence[Draws], numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """How every row is drawn, in the order in which `draw_tokens` takes it."""
        (top_k, seeds, places), (temperature, top_p, min_p) = staged(
            self.device,
            [[draw.top_k for draw in draws], [draw.seed for draw in draws], numbers],
            [[draw.temperature for draw in draws], [draw.top_p for draw in draws], [draw.min_p for draw in draws]],
        )
        return temperature, top_k, top_p, min_p, seeds, places

    def _adjust(self, draws: Sequence[Draws], numbers: Sequence[int], logits: Tensor) -> None:
        """What is never drawn, penalties, biases and grammars, each for all the rows that have them at once."""
        logits.index_fill_(1, self._never, float("-inf"))
        positions = [number & 0xFFFFFFFF for number in numbers]
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
            (at, named), (added,) = staged(self.device, [rows, tokens], [values])
            add_bias(logits, at, named, added)
        masked = [i for i, draw in enumerate(draws) if draw.allowed]
        if masked:
            bits = np.frombuffer(b"".join(draws[i].allowed for i in masked), np.uint8).reshape(len(masked), -1)
            apply_bitmask(logits, self._long(masked), self._array(bits.copy()))

    def _likelihoods(self, draws: Sequence[Draws], plain: Tensor, chosen: Tensor) -> Likelihoods | None:
        """Of the draws that asked for them."""
        asked = [(i, draw.logprobs) for i, draw in enumerate(draws) if draw.logprobs is not None]
        if not asked:
            return None
        row = self._long([i for i, _ in asked])
        most = max(count for _, count in asked)
        told = plain_logprobs(plain, row, chosen[row], most, self._never)
        return Likelihoods(asked, *map(fetched, told))

    def _array(self, values: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        return to_device(values, self.device).to(dtype=dtype)

    def _long(self, values: Sequence[int]) -> Tensor:
        return staged(self.device, [values])[0][0]


def _kinds(draws: Sequence[Draws]) -> Kinds:
    drawn = [draw for draw in draws if draw.temperature >= COLDEST]
    return Kinds(
        bool(drawn), any(draw.top_k for draw in drawn), any(draw.top_p < 1.0 for draw in drawn), any(draw.min_p for draw in drawn)
    )  # fmt: skip


def warmth(draw: Draws, heat: float) -> float:
    """The temperature of the distribution that is looked at: for greedy draws that of a request with 1."""
    return heat if draw.temperature < COLDEST else draw.temperature * heat


def _draw_number(row: TokenRow, offset: int) -> int:
    """Position of the token that is drawn, and in the high word which draw at that position this is."""
    own = offset >= len(row.tokens) - row.asks if row.mode == "tree" else not row.reads_next
    return (row.positions[offset] + (not own)) | (row.draw << 32)
