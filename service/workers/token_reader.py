"""What a network said at the positions that were asked for: tokens drawn there, and how sure it was of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.token_sampling import COLDEST, add_bias, apply_bitmask, draw_tokens, penalise, plain_logprobs, spread
from service.procedures.types import Reading, TokenRow
from service.workers.purposes import TOKEN_DRAW
from service.workers.threads import Threads
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome, TokenRead

SCORED_PIECE = 64


class TokenReader:
    """Reads the logits of many moves at once, each in its own way. `never` are token ids that must not be produced."""

    def __init__(self, never: Sequence[int], device: torch.device, threads: Threads) -> None:
        self.device = device
        self._never = self._long(never)
        self._threads = threads

    def read(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
        """logits float32 [W, vocabulary] of the wanted positions of every move's last row, which are changed -> an outcome a
        move."""
        scoring = [i for i, move in enumerate(moves) if move.rows[-1].scored]
        if not scoring:
            return self._drawn(moves, logits)
        parts = logits.split([len(move.rows[-1].wanted) for move in moves])
        drawing = [i for i, move in enumerate(moves) if not move.rows[-1].scored]
        outcomes: dict[int, TokenOutcome] = {i: self._scored(moves[i], parts[i]) for i in scoring}
        if any(len(parts[i]) for i in drawing):
            drawn = self._drawn([moves[i] for i in drawing], torch.cat([parts[i] for i in drawing]))
            outcomes |= zip(drawing, drawn, strict=True)
        return [outcomes.get(i, TokenRead()) for i in range(len(moves))]

    def _scored(self, move: TokenMove, logits: Tensor) -> TokenOutcome:
        """What a move asks of tokens that are known: piece by piece, since each takes several times its logits' room."""
        tokens, most, readings = self._long(move.rows[-1].scored), move.draws.logprobs or 0, list[Reading]()
        for at in range(0, len(tokens), SCORED_PIECE):
            part, known = logits[at : at + SCORED_PIECE], tokens[at : at + SCORED_PIECE]
            if not bool(torch.isfinite(part.sum(dim=-1)).all()):
                return RowError("the logits are not finite")
            row = torch.arange(len(part), device=self.device)
            own, top, ids = (each.tolist() for each in plain_logprobs(part, row, known, most, self._never))
            for token, logprob, best, names in zip(known.tolist(), own, top, ids, strict=True):
                readings.append(Reading(token, math.exp(logprob), logprob, tuple(zip(names, best, strict=True))))
        return TokenRead(readings)

    def _drawn(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
        counts = [len(move.rows[-1].wanted) for move in moves]
        finite = torch.isfinite(logits.sum(dim=-1)).tolist()
        draws = [draw.heated(move.rows[-1].heat) for move in moves for draw in move.every_draw()]
        plain = logits.clone() if any(draw.logprobs is not None for draw in draws) else logits
        numbers = [_draw_number(row, offset) for row in (move.rows[-1] for move in moves) for offset in row.wanted]
        chosen, confidence = self._draw(draws, logits, numbers)
        readings = [Reading(*pair) for pair in zip(chosen.tolist(), confidence.tolist(), strict=True)]
        for i, reading in self._logprobs(draws, plain, chosen):
            readings[i] = replace(readings[i], logprob=reading[0], top=reading[1])
        for i, entropy, margin, likeliest in self._spread(moves, logits):
            readings[i] = replace(readings[i], entropy=entropy, margin=margin, likeliest=likeliest)
        outcomes: list[TokenOutcome] = []
        at = 0
        for count in counts:
            whole = all(finite[at : at + count])
            outcomes.append(TokenRead(readings[at : at + count]) if whole else RowError("the logits are not finite"))
            at += count
        return outcomes

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
        logits[:, self._never] = float("-inf")
        self._adjust(draws, [number & 0xFFFFFFFF for number in numbers], logits)
        return self._choose(draws, logits, numbers)

    def _choose(self, draws: Sequence[Draws], logits: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return draw_tokens(
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

    def _spread(self, moves: Sequence[TokenMove], logits: Tensor) -> Iterator[tuple[int, float, float, int]]:
        """Index of every reading whose row asked, its entropy, its margin and the likeliest token."""
        asked = [(move.rows[-1], draw) for move in moves for draw in move.every_draw()]
        rows = [i for i, (row, _) in enumerate(asked) if row.spread]
        if rows:
            own = logits[self._long(rows)]
            temperature = torch.tensor([warmth(asked[i][1], asked[i][0].heat) for i in rows], device=self.device)
            entropy, margin = spread(own, temperature, self._threads.every)
            yield from zip(rows, entropy.tolist(), margin.tolist(), own.argmax(-1).tolist(), strict=True)

    def _array(self, values: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(values).to(device=self.device, dtype=dtype)

    def _long(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def warmth(draw: Draws, heat: float) -> float:
    """The temperature of the distribution that is looked at: for greedy draws that of a request with 1."""
    return heat if draw.temperature < COLDEST else draw.temperature * heat


def _draw_number(row: TokenRow, offset: int) -> int:
    """Position of the token that is drawn, and in the high word which draw at that position this is."""
    own = offset >= len(row.tokens) - row.asks if row.mode == "tree" else not row.reads_next
    return (row.positions[offset] + (not own)) | (row.draw << 32)
