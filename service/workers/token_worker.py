"""Runs packed token rows of one decoder in one forward, over a paged cache."""

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
from service.models.decoder import Decoder
from service.models.heads import FeatureModule, Heads, MedusaHeads
from service.procedures.drafts import accepted
from service.procedures.types import Reading, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.conditioning import Conditioning
from service.workers.drafters import CachedDrafter, Continuation, Drafter, MedusaDrafter
from service.workers.fastest_forward import fastest_forward
from service.workers.kernel_forward import KernelForward
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.purposes import TOKEN_DRAW
from service.workers.threads import Threads
from service.workers.types import Draws, RowError, TokenMove, TokenOutcome, TokenRead

SCORED_PIECE = 64


class TokenWorker:
    """One decoder's weights and cache on one device.

    `never` are token ids that must not be produced. With `batch_invariant` every number is computed in an order that
    depends on its own request alone, so that neither the batch nor a chunked prefill changes a bit. The networks are taken
    over: their layers are fused in place, or their weights packed for the CPU kernel. `drafters` guess for requests that
    name them.
    """

    def __init__(
        self, network: Decoder, pool: BlockPool, device: torch.device, threads: Threads, never: Sequence[int] = (),
        batch_invariant: bool = False, heads: Heads | None = None, draft_model: Decoder | None = None,
    ) -> None:  # fmt: skip
        self._threads = threads
        self.device = device
        self.pool = pool
        self.cache = PagedCache.of(network.config, pool, network.dtype, device)
        self._never = torch.tensor(list(never), dtype=torch.int64, device=device)
        self.drafters: dict[str, Drafter] = {}
        # The module's decoder shares what the kernel takes out of the network.
        layer = heads.decoder(network) if isinstance(heads, FeatureModule) else None
        self._conditioning = Conditioning(network) if network.config.self_conditioning else None
        self._forward = fastest_forward(network, self.cache, threads, batch_invariant)
        self.run_by = "the CPU kernel" if isinstance(self._forward, KernelForward) else "torch"
        vocabulary, longest = network.config.vocab_size, network.config.max_position_embeddings
        if isinstance(heads, MedusaHeads):
            self.drafters["heads"] = MedusaDrafter(heads, self._guess)
        elif heads is not None and layer is not None:
            cache = PagedCache.of(layer.config, pool, network.dtype, device)
            forward = fastest_forward(layer, cache, threads, batch_invariant, self._forward)
            self.drafters["heads"] = CachedDrafter(forward, cache, vocabulary, vocabulary, longest, self._guess, heads)
        if draft_model is not None:
            cache = PagedCache.of(draft_model.config, pool, draft_model.dtype, device)
            known, longest = draft_model.config.vocab_size, draft_model.config.max_position_embeddings
            forward = fastest_forward(draft_model, cache, threads, batch_invariant)
            self.drafters["draft_model"] = CachedDrafter(forward, cache, vocabulary, known, longest, self._guess)

    @torch.inference_mode()
    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        """One outcome a move: the readings of the last row's wanted positions, or why that move failed."""
        packed = PackedRows.of(moves, self.pool.block_size)
        asked = {move.drafter for move in moves}
        drafters = {name: drafter for name, drafter in self.drafters.items() if name in asked}
        inputs = None
        if self._conditioning is not None and any(packed.in_canvas()):
            inputs = self._conditioning.inputs(moves, self._forward.embed(self._long(packed.tokens)))
        output = self._forward(packed, inputs, any(drafter.reads_states for drafter in drafters.values()))
        sound = output.finite.tolist()
        outcomes: list[TokenOutcome] = self._read(moves, output.logits) if packed.wanted else [TokenRead() for _ in moves]
        self._carry(moves, outcomes, output.logits)
        self._check(moves, outcomes, sound)
        self._settle(moves, outcomes)
        for name, drafter in drafters.items():
            self._draft(name, drafter, moves, outcomes, output.states)
        return outcomes

    def _carry(self, moves: Sequence[TokenMove], outcomes: list[TokenOutcome], logits: Tensor) -> None:
        """What canvases were drawn from goes into their outcomes, in the form in which the network takes it in."""
        if self._conditioning is None:
            return
        at = 0
        for i, move in enumerate(moves):
            row, outcome = move.rows[-1], outcomes[i]
            own = logits[at : at + len(row.wanted)]
            at += len(row.wanted)
            if row.mode == "block" and isinstance(outcome, TokenRead):
                temperatures = torch.tensor([_warmth(draw, row.heat) for draw in move.every_draw()], device=self.device)
                outcomes[i] = replace(outcome, carried=self._conditioning.carried(own, temperatures))

    def _check(self, moves: Sequence[TokenMove], outcomes: list[TokenOutcome], sound: Sequence[bool]) -> None:
        at = 0
        for i, move in enumerate(moves):
            size = sum(len(row.tokens) for row in move.rows)
            # What a chunk of a prefill leaves for others is looked at too, not only what is read.
            if isinstance(outcomes[i], RowError) or not all(sound[at : at + size]):
                self._clear(move.blocks)
                outcomes[i] = RowError("the model's output for this request is not finite")
            at += size

    def _draft(
        self, name: str, drafter: Drafter, moves: Sequence[TokenMove], outcomes: list[TokenOutcome], states: Tensor | None
    ) -> None:
        """What one drafter guesses behind its requests' moves goes into their outcomes."""
        continued: dict[int, Continuation] = {}
        at = 0
        for i, (move, outcome) in enumerate(zip(moves, outcomes, strict=True)):
            at += sum(len(row.tokens) for row in move.rows)
            if move.drafter == name and isinstance(outcome, TokenRead):
                continued[i] = _continuation(move, outcome, at - len(move.rows[-1].tokens))
        drafts = drafter.draft(list(continued.values()), states) if continued else []
        for i, draft in zip(continued, drafts, strict=True):
            outcome = outcomes[i]
            assert isinstance(outcome, TokenRead)
            outcomes[i] = replace(outcome, draft=draft if draft.tokens else None)

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
        own = self.pool.unshared(blocks)
        self.cache.clear(own)
        for drafter in self.drafters.values():
            drafter.clear(own)

    def _long(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _read(self, moves: Sequence[TokenMove], logits: Tensor) -> list[TokenOutcome]:
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

    def _guess(
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
            temperature = torch.tensor([_warmth(asked[i][1], asked[i][0].heat) for i in rows], device=self.device)
            entropy, margin = spread(own, temperature, self._threads.every)
            yield from zip(rows, entropy.tolist(), margin.tolist(), own.argmax(-1).tolist(), strict=True)

    def _array(self, values: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(values).to(device=self.device, dtype=dtype)


def _warmth(draw: Draws, heat: float) -> float:
    """The temperature of the distribution that is looked at: for greedy draws that of a request with 1."""
    return heat if draw.temperature < COLDEST else draw.temperature * heat


def _draw_number(row: TokenRow, offset: int) -> int:
    """Position of the token that is drawn, and in the high word which draw at that position this is."""
    own = offset >= len(row.tokens) - row.asks if row.mode == "tree" else not row.reads_next
    return (row.positions[offset] + (not own)) | (row.draw << 32)


def _continuation(move: TokenMove, read: TokenRead, at: int) -> Continuation:
    """What is committed behind a forward in which the move's last row begins at `at`."""
    row, draws = move.rows[-1], move.draws
    known = len(row.tokens) - row.drafts
    tokens, states, count = row.tokens[:known], [at + i for i in range(known)], 0
    if len(read.readings) == row.drafts + 1:
        drawn = [reading.token for reading in read.readings]
        path = accepted(row.draft(), drawn)
        last = path[-1] + 1 if path else 0
        tokens += (*(row.tokens[known + i] for i in path), drawn[last])
        states += [at + known + i for i in path]
        count, draws = move.drafting, move.every_draw()[last]
    elif move.following is not None:
        tokens += (move.following,)
    return Continuation(move.blocks, draws, row.start, tokens, tuple(states), count, move.deferred, move.width)
