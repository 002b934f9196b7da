"""Runs packed token rows of one decoder in one forward, over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernels.capture import Capture
from kernels.dispatch import triton_for
from kernels.token_sampling import COLDEST
from service.models.decoder import Decoder
from service.models.heads import FeatureModule, Heads, MedusaHeads
from service.models.parallel_decoder import ParallelDecoder
from service.procedures.drafts import accepted
from service.workers.block_pool import BlockPool
from service.workers.conditioning import Conditioning
from service.workers.drafters import CachedDrafter, Continuation, Drafter, MedusaDrafter
from service.workers.fastest_forward import fastest_forward
from service.workers.forward import Forward
from service.workers.kernel_forward import KernelForward
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.pending import Launched, Pending, Span, fetched
from service.workers.ranks import Ranks
from service.workers.staging import staged
from service.workers.streams import streams_of
from service.workers.threads import Threads
from service.workers.token_reader import TokenReader, warmth
from service.workers.torch_forward import TorchForward
from service.workers.types import RowError, TokenMove, TokenOutcome, TokenRead
from service.workers.unread import Unread


class TokenWorker:
    """One decoder's weights and cache on one device.

    `never` are token ids that must not be produced. With `batch_invariant` every number is computed in an order that
    depends on its own request alone, so that neither the batch nor a chunked prefill changes a bit. The networks are taken
    over: their layers are fused in place, or their weights packed for the CPU kernel. `drafters` guess for requests that
    name them. A network that is divided is led by this process and followed by its `ranks`.
    """

    def __init__(
        self, network: Decoder, pool: BlockPool, device: torch.device, threads: Threads, never: Sequence[int] = (),
        batch_invariant: bool = False, heads: Heads | None = None, draft_model: Decoder | None = None,
        ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self._threads = threads
        self.device = device
        self.pool = pool
        self._streams = streams_of(device)
        self._reader = TokenReader(never, device, threads)
        self._last: Unread | None = None
        self.drafters: dict[str, Drafter] = {}
        # The module's decoder shares what the kernel takes out of the network.
        layer = heads.decoder(network) if isinstance(heads, FeatureModule) else None
        self._conditioning = Conditioning(network) if network.config.self_conditioning else None
        self.cache: PagedCache
        self._forward: Forward
        if ranks is not None and isinstance(network, ParallelDecoder):
            self.cache, self._forward = ranks.lead(network, pool, device, threads, batch_invariant)
        else:
            self.cache = PagedCache.of(network.config, pool, network.dtype, device)
            self._forward = fastest_forward(network, self.cache, threads, batch_invariant)
        self.run_by = "the CPU kernel" if isinstance(self._forward, KernelForward) else "torch"
        self.run_by += f" on {ranks.size} ranks" if ranks is not None else ""
        vocabulary, longest = network.config.vocab_size, network.config.max_position_embeddings
        if isinstance(heads, MedusaHeads):
            self.drafters["heads"] = MedusaDrafter(heads, self._reader.guess)
        elif heads is not None and layer is not None:
            cache = PagedCache.of(layer.config, pool, network.dtype, device)
            forward = fastest_forward(layer, cache, threads, batch_invariant, self._forward)
            self.drafters["heads"] = CachedDrafter(forward, cache, vocabulary, vocabulary, longest, self._reader.guess, heads)
        if draft_model is not None:
            cache = PagedCache.of(draft_model.config, pool, draft_model.dtype, device)
            known, longest = draft_model.config.vocab_size, draft_model.config.max_position_embeddings
            forward = fastest_forward(draft_model, cache, threads, batch_invariant)
            self.drafters["draft_model"] = CachedDrafter(forward, cache, vocabulary, known, longest, self._reader.guess)

    def resize(self, blocks: int) -> None:
        """Another number of blocks, all empty; before there are requests. The CPU kernel keeps the store that it was given."""
        assert not isinstance(self._forward, KernelForward)
        self.pool.resize(blocks)
        self.cache.reserve()
        for drafter in self.drafters.values():
            drafter.reserve()

    @torch.inference_mode()
    def capture(self, rows: int, capture: Capture) -> None:
        """Decode forwards of up to so many rows are captured, where Triton computes their attention; before there are requests,
        and when the cache has its memory."""
        if isinstance(self._forward, TorchForward) and triton_for(self.cache.store):
            with self._streams.main():
                self._forward.capture(rows, capture)

    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        """One outcome a move: the readings of the last row's wanted positions, or why that move failed."""
        return self.launch(moves).outcomes()

    @torch.inference_mode()
    def launch(self, moves: Sequence[TokenMove]) -> Pending[TokenOutcome]:
        """The forward, the draws and the copies of what they gave are enqueued, and nothing is waited for. What hangs on the
        tokens, as a drafter's guesses, is enqueued when the outcomes are asked for, behind what was launched meanwhile."""
        with self._streams.main():
            span = Span(self.device)
            packed = PackedRows.of(moves, self.pool.block_size)
            asked = {move.drafter for move in moves}
            drafters = {name: drafter for name, drafter in self.drafters.items() if name in asked}
            states = any(drafter.reads_states for drafter in drafters.values())
            output = self._forward(packed, self._inputs(moves, packed), states)
            sound = fetched(output.finite)
            unread = self._reader.read(moves, output.logits) if packed.wanted else Unread.nothing(moves)
            self._last = unread
            carried = self._carried(moves, output.logits)
            span.close()
        later = list[Span]()
        return Launched(
            span, lambda: self._outcomes(moves, sound, unread, carried, drafters, output.states, later), later=later
        )  # fmt: skip

    @torch.inference_mode()
    def _outcomes(
        self, moves: Sequence[TokenMove], sound: Tensor, unread: Unread, carried: Mapping[int, Tensor],
        drafters: Mapping[str, Drafter], states: Tensor | None, later: list[Span],
    ) -> list[TokenOutcome]:  # fmt: skip
        """`later` is given the stretch in which drafters guessed, if they did: behind one that did not is nothing to wait for."""
        with self._streams.main():
            outcomes = unread.outcomes()
            for i, tensor in carried.items():
                outcome = outcomes[i]
                outcomes[i] = replace(outcome, carried=tensor) if isinstance(outcome, TokenRead) else outcome
            self._check(moves, outcomes, sound.tolist())
            self._settle(moves, outcomes)
            span = Span(self.device)
            for name, drafter in drafters.items():
                self._draft(name, drafter, moves, outcomes, states)
            span.close()
            if any(isinstance(outcome, TokenRead) and outcome.draft is not None for outcome in outcomes):
                later.append(span)
        return outcomes

    def _inputs(self, moves: Sequence[TokenMove], packed: PackedRows) -> Tensor | None:
        """What stands in for the embeddings of the packed tokens, where those are not all that there is to it."""
        following = [(i, move.follows) for i, move in enumerate(moves) if move.follows is not None]
        conditioned = self._conditioning is not None and any(packed.in_canvas())
        if not following and not conditioned:
            return None
        places = [packed.firsts[i] for i, _ in following]
        sources = [] if self._last is None else [self._last.places[source] for _, source in following]
        (tokens, at, drawn), _ = staged(self.device, [packed.tokens, places, sources])
        if following:
            assert self._last is not None and self._last.chosen is not None, "nothing was launched that draws these tokens"
            tokens = tokens.index_copy(0, at, self._last.chosen.index_select(0, drawn))
        embedded = self._forward.embed(tokens)
        return self._conditioning.inputs(moves, embedded) if self._conditioning is not None and conditioned else embedded

    def _carried(self, moves: Sequence[TokenMove], logits: Tensor) -> dict[int, Tensor]:
        """What canvases are drawn from, in the form in which the network takes it in, for each move that has one."""
        carried: dict[int, Tensor] = {}
        if self._conditioning is None:
            return carried
        at = 0
        for i, move in enumerate(moves):
            row = move.rows[-1]
            own = logits[at : at + len(row.wanted)]
            at += len(row.wanted)
            if row.mode == "block" and row.wanted:
                warmths = [max(COLDEST, warmth(draw, row.heat)) for draw in move.every_draw()]
                _, (temperatures,) = staged(self.device, [], [warmths])
                carried[i] = self._conditioning.carried(own, temperatures)
        return carried

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
