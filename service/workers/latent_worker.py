"""Runs the moves of pictures: texts into conditions, one row of every latent in a batch, latents into pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from kernels.capture import Capture
from kernels.philox import normal
from kernels.sampler_update import Noise, sampler_step
from service.models.latent_network import ExpandingNetwork, LatentNetwork
from service.models.reuse_memory import all_or_nothing
from service.models.scorers import ALWAYS
from service.workers.block_pool import BlockPool
from service.workers.conditions import Conditions
from service.workers.denoising_graphs import denoising_graphs
from service.workers.expanding import expanded
from service.workers.guidance import to_be_guided
from service.workers.pending import Launched, Pending, Span, fetched
from service.workers.purposes import INITIAL_NOISE, STEP_NOISE
from service.workers.scores import checked, scored
from service.workers.staging import staged
from service.workers.streams import streams_of
from service.workers.threads import Threads
from service.workers.types import (
    DecodeMove,
    Encoded,
    EncodeMove,
    ExpandMove,
    Latent,
    LatentMove,
    LatentOutcome,
    Picture,
    RefineMove,
    RowError,
    ScoreMove,
)

Finish = Callable[[], list[LatentOutcome]]
"""Gives the outcomes, when the device has done its work."""


class LatentWorker:
    """One network, and the latents of its requests: x, h1, h2 float32 [slots, 3, elements], reserved at start for the largest
    picture; a smaller one takes the first elements.

    With `batch_invariant` every row is evaluated alone, so that no bit of it depends on the batch. With a `capture` evaluations
    of few rows are captured, where the network allows it.
    """

    def __init__(
        self, network: LatentNetwork, pool: BlockPool, device: torch.device, threads: Threads, batch_invariant: bool = False,
        capture: Capture | None = None,
    ) -> None:  # fmt: skip
        self._threads = threads
        self._streams = streams_of(device)
        self._batch_invariant = batch_invariant
        self.network = network
        self.device = device
        self.pool = pool
        self.scorers = (*network.scorers, *ALWAYS)
        self.store = torch.empty(pool.blocks, 3, elements(network), device=device)
        self._conditions = Conditions(network, device, alone=batch_invariant)
        self._graphs = denoising_graphs(network, device, capture)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture what a forward would capture when it comes, of the sizes of pictures that were evaluated so far."""
        if self._graphs is not None:
            with self._streams.main():
                self._graphs.prepare()

    def run(self, moves: Sequence[LatentMove]) -> list[LatentOutcome]:
        """Moves of one stage and, unless they encode, of one size. An outcome a move, or why it failed."""
        return self.launch(moves).outcomes()

    @torch.inference_mode()
    def launch(self, moves: Sequence[LatentMove]) -> Pending[LatentOutcome]:
        """The forward is enqueued, and nothing is waited for. On a GPU texts are encoded and latents decoded beside the main
        stream, each on a line of its own; scores are the host's work, and are made when they are asked for.

        Latents are written back only after the whole batch was computed, and what rows remember of evaluations is set back, so
        a forward that raises changes nothing.
        """
        if isinstance(moves[0], ScoreMove):
            return Launched(None, partial(_scores, moves))
        if isinstance(moves[0], EncodeMove | DecodeMove):
            line = "encode" if isinstance(moves[0], EncodeMove) else "decode"
            with self._streams.beside(line) as aside:
                span = Span(self.device)
                finish = self._encode(moves) if line == "encode" else self._decode(moves)
                span.close()
            return Launched(span, finish, aside)
        with self._streams.main():
            span = Span(self.device)
            with all_or_nothing([memory for move in moves if isinstance(move, RefineMove) for memory in move.reuse]):
                finish = self._refine(moves) if isinstance(moves[0], RefineMove) else self._expand(moves)
            span.close()
        return Launched(span, finish)

    def _encode(self, moves: Sequence[LatentMove]) -> Finish:
        self._take_threads(len(moves), self.network.sizes.default)
        texts = [move for move in moves if isinstance(move, EncodeMove)]
        outcomes = checked(texts, self._conditions.encode(texts))
        for outcome in outcomes:
            if isinstance(outcome, Encoded):
                for tensor in outcome.every_tensor():
                    self._streams.hand_over(tensor)
        return lambda: list(outcomes)

    def _decode(self, moves: Sequence[LatentMove]) -> Finish:
        self._take_threads(len(moves), self.network.sizes.default)
        latents = torch.stack([move.latent.tensor for move in moves if isinstance(move, DecodeMove)])
        pixels = self._pixels(latents)
        return lambda: list(_pictures(pixels))

    def _expand(self, every: Sequence[LatentMove]) -> Finish:
        moves = [move for move in every if isinstance(move, ExpandMove)]
        self._take_threads(len(moves), self.network.sizes.default)
        shape = self.network.latent_shape(moves[0].width, moves[0].height)
        (slots,), _ = staged(self.device, [[move.slot for move in moves]])
        states = self.store[slots, 0, : math.prod(shape)].unflatten(1, shape)
        network = cast(ExpandingNetwork, self.network)
        groups = [slice(i, i + 1) for i in range(len(moves))] if self._batch_invariant else [slice(None)]
        outcomes = [one for group in groups for one in expanded(network, moves[group], states[group])]
        return lambda: list(outcomes)

    def _refine(self, every: Sequence[LatentMove]) -> Finish:
        moves = [move for move in every if isinstance(move, RefineMove)]
        rows = [move.row for move in moves]
        shape = self.network.latent_shape(moves[0].width, moves[0].height)
        size = math.prod(shape)
        first = [i for i, row in enumerate(rows) if row.start is not None]
        own_slots, given = [move.slot for move in moves], [move.source.slot if move.source else move.slot for move in moves]
        (slots, sources, begun, seeds, draws), (coefficients, estimates) = staged(
            self.device,
            [own_slots, given, first, [move.seed for move in moves], [row.draw for row in rows]],
            [[number for row in rows for number in row.coefficients], [number for row in rows for number in row.estimate]],
        )
        noise = Noise(seeds, draws, STEP_NOISE) if any(row.coefficients[4] for row in rows) else None
        wanted = estimates.view(-1, 2) if any(move.shown and not move.final for move in moves) else None
        x, h1, h2 = self.store[sources, :, :size].unflatten(2, shape).unbind(1)
        x = self._forked(moves, x, shape)
        if first:
            x, h1, h2 = x.clone(), h1.clone(), h2.clone()
            x[begun] = self._begun([moves[i] for i in first], shape)
            h1.index_fill_(0, begun, 0.0)
            h2.index_fill_(0, begun, 0.0)
        f, guidance = to_be_guided(self.network, rows, self._evaluate(moves, x))
        numbers = coefficients.view(-1, 7)
        x, h1, h2, estimate = sampler_step(x, f, h1, h2, numbers, noise=noise, guidance=guidance, estimates=wanted)
        if estimate is not None:
            _keep(moves, estimate)
        x = self._kept(moves, x, shape)
        finish = self._shown(moves, x, estimate)
        self.store[slots, :, :size] = torch.stack((x, h1, h2), dim=1).flatten(2)
        return finish

    def _begun(self, moves: list[RefineMove], shape: tuple[int, ...]) -> Tensor:
        """First states alpha x0 + sigma eps [R, C, H, W]; without a given picture they are noise alone."""
        noise = self._noise([move.seed for move in moves], [0] * len(moves), INITIAL_NOISE, shape)
        starts = [cast(tuple[float, float], move.row.start) for move in moves]
        _, (sigmas,) = staged(self.device, [], [[sigma for _, sigma in starts]])
        x = noise * _column(sigmas)
        for i, (move, (alpha, _)) in enumerate(zip(moves, starts, strict=True)):
            if move.encoded.given is not None:
                x[i] += alpha * move.encoded.given
        return x

    def _forked(self, moves: list[RefineMove], x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """States with noise of their own where they are copies, and are not kept by a mask."""
        forks = [(i, move.seed, move.source) for i, move in enumerate(moves) if move.source is not None and move.source.scale]
        if not forks:
            return x
        draws = [source.draw for _, _, source in forks]
        own = self._noise([seed for _, seed, _ in forks], draws, STEP_NOISE, shape)
        theirs = self._noise([source.seed for _, _, source in forks], draws, STEP_NOISE, shape)
        _, (scales,) = staged(self.device, [], [[source.scale for _, _, source in forks]])
        x = x.clone()
        for (i, _, _), other in zip(forks, _column(scales) * (own - theirs), strict=True):
            mask = moves[i].encoded.mask
            x[i] += other if mask is None else mask * other
        return x

    def _kept(self, moves: list[RefineMove], x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """States with what a mask keeps of the given picture put back, under its first noise (as arXiv 2201.09865 does), and in
        the end without any, at whatever noise level a sampler ends."""
        masked = [i for i, move in enumerate(moves) if move.encoded.mask is not None]
        if not masked:
            return x
        x = x.clone()
        noise = self._noise([moves[i].seed for i in masked], [0] * len(masked), INITIAL_NOISE, shape)
        for i, eps in zip(masked, noise, strict=True):
            (alpha, sigma), encoded = (1.0, 0.0) if moves[i].final else moves[i].row.after, moves[i].encoded
            assert encoded.mask is not None and encoded.given is not None
            x[i] = encoded.mask * x[i] + (1.0 - encoded.mask) * (alpha * encoded.given + sigma * eps)
        return x

    def _shown(self, moves: list[RefineMove], x: Tensor, estimate: Tensor | None) -> Finish:
        """What there is to be seen is there when the forward is over; whether it is finite is known then."""
        finite = fetched(torch.isfinite(x).flatten(1).all(dim=1))
        shown = [i for i, move in enumerate(moves) if move.shown]
        latents = [x[i] if moves[i].final or estimate is None else estimate[i] for i in shown]
        stacked = torch.stack(latents) if latents else None
        pixels = None if stacked is None or self.network.decodes else self._pixels(stacked)

        def finish() -> list[LatentOutcome]:
            outcomes: list[LatentOutcome] = [None] * len(moves)
            if stacked is not None:
                ends: Iterable[Latent | Picture] = map(Latent, stacked) if pixels is None else _pictures(pixels)
                for i, end in zip(shown, ends, strict=True):
                    outcomes[i] = end
            unsound = RowError("the model's output for this request is not finite")
            return [outcome if sound else unsound for outcome, sound in zip(outcomes, finite.tolist(), strict=True)]

        return finish

    def _evaluate(self, moves: list[RefineMove], x: Tensor) -> Tensor:
        """The network's outputs, one a row and behind them one without the text for each paired row, [R + paired, C, H, W]."""
        paired = [i for i, move in enumerate(moves) if move.row.paired]
        rows = [move.row for move in moves] + [moves[i].row for i in paired]
        conditions = [move.encoded.conditions[0] for move in moves] + [moves[i].encoded.conditions[1] for i in paired]
        adapters = [move.adapters for move in moves] + [moves[i].adapters for i in paired]
        reuse = [move.reuse[0] if move.reuse else None for move in moves]
        reuse += [moves[i].reuse[1] if moves[i].reuse else None for i in paired]
        (index,), (t, s, scale) = staged(
            self.device,
            [[*range(len(moves)), *paired]],
            [
                [row.t for row in rows],
                [row.s if row.takes_target else row.t for row in rows],
                [1.0 if row.paired else row.guidance for row in rows],
            ],
        )
        alone = self._batch_invariant
        self._take_threads(1 if alone else len(rows), (moves[0].width, moves[0].height))
        every = [slice(i, i + 1) for i in range(len(rows))] if alone else [slice(None)]
        x = x[index]
        parts = list[Tensor]()
        for i in every:
            rows_of = (x[i], t[i], s[i], scale[i], conditions[i], adapters[i])
            captured = None if self._graphs is None else self._graphs.evaluate(*rows_of, reuse[i])
            if captured is not None:
                parts.append(captured.clone())
                continue
            with self.network.reusing(reuse[i]):
                parts.append(self.network.evaluate(*rows_of))
        return torch.cat(parts)

    def _pixels(self, latents: Tensor) -> Tensor:
        """uint8 [R, H, W, 3], on their way to the host."""
        every = latents.split(1) if self._batch_invariant else [latents]
        return fetched(torch.cat([self.network.decode(some) for some in every]))

    def _noise(self, seeds: Sequence[int], draws: Sequence[int], purpose: int, shape: tuple[int, ...]) -> Tensor:
        (seed, draw), _ = staged(self.device, [seeds, draws])
        return normal(seed, draw, purpose, math.prod(shape)).view(-1, *shape)

    def _take_threads(self, rows: int, size: tuple[int, int]) -> None:
        if self.network.run_by == "torch":
            self._threads.take(2.0 * self.network.parameters * self.network.tokens(*size) * rows)
        else:
            self._threads.leave_to_kernel()


def elements(network: LatentNetwork) -> int:
    """Numbers in the latent of the largest picture."""
    rule = network.sizes
    if rule.listed:
        return max(math.prod(network.latent_shape(*size)) for size in rule.listed)
    width, height = rule.default
    return math.ceil(math.prod(network.latent_shape(width, height)) * max(1.0, rule.area / (width * height)))


def _keep(moves: list[RefineMove], estimate: Tensor) -> None:
    """Put back what masks keep of given pictures into estimates of the data [R, C, H, W]."""
    for i, move in enumerate(moves):
        given, mask = move.encoded.given, move.encoded.mask
        if move.shown and mask is not None and given is not None:
            estimate[i] = mask * estimate[i] + (1.0 - mask) * given


def _column(numbers: Tensor) -> Tensor:
    """One number a row, [R, 1, 1, 1]."""
    return numbers.view(-1, 1, 1, 1)


def _pictures(pixels: Tensor) -> list[Picture]:
    every = pixels.contiguous().numpy()
    return [Picture(rgb.shape[1], rgb.shape[0], rgb.tobytes()) for rgb in every]


def _scores(moves: Sequence[LatentMove]) -> list[LatentOutcome]:
    return list(scored([move for move in moves if isinstance(move, ScoreMove)]))
