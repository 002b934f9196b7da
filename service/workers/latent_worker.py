"""Runs one row of every latent in a batch: one forward, guidance, one update, whatever sampler each row comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.philox import normal
from kernels.sampler_update import sampler_update
from service.models.flow_serving import KernelFlow, flow_evaluator
from service.models.flow_transformer import FlowTransformer
from service.workers.block_pool import BlockPool
from service.workers.purposes import INITIAL_NOISE, STEP_NOISE
from service.workers.threads import Threads
from service.workers.types import LatentMove, LatentOutcome, Picture, RowError


class LatentWorker:
    """One network's weights, and the latents of its requests: x, h1, h2 float32 [slots, 3, C, H, W], reserved at start.

    With `batch_invariant` every row is evaluated alone, so that no bit of it depends on the batch.
    """

    def __init__(
        self, network: FlowTransformer, pool: BlockPool, device: torch.device, threads: Threads, batch_invariant: bool = False
    ) -> None:
        self._threads = threads
        self._batch_invariant = batch_invariant
        config = network.config
        parameters = sum(parameter.numel() for parameter in network.parameters())
        self._row_operations = 2.0 * parameters * (config.patches + config.max_text_tokens)
        self.network = network
        self._evaluator = flow_evaluator(network, threads.every, full=batch_invariant)
        self.run_by = "the CPU kernel" if isinstance(self._evaluator, KernelFlow) else "torch"
        self.device = device
        self.pool = pool
        self.shape = (config.channels, config.image_size, config.image_size)
        self.store = torch.zeros(pool.blocks, 3, *self.shape, device=device)

    @torch.inference_mode()
    def run(self, moves: Sequence[LatentMove]) -> list[LatentOutcome]:
        """A move's outcome is the picture where one is asked for, None otherwise, or why the move failed.

        Latents are written back only after the whole batch was computed, so a forward that raises changes nothing.
        """
        slots = torch.tensor([move.slot for move in moves], device=self.device)
        x, h1, h2 = self.store[slots].unbind(1)
        seeds = torch.tensor([move.seed for move in moves], device=self.device)
        first = [i for i, move in enumerate(moves) if move.row.index == 0]
        if first:
            x, h1, h2 = x.clone(), h1.clone(), h2.clone()
            x[first] = self._noise(seeds[first], torch.zeros_like(seeds[first]), INITIAL_NOISE)
            h1[first] = 0.0
            h2[first] = 0.0
        f = self._evaluate(moves, x)
        times = torch.tensor([move.row.t for move in moves], device=self.device)[:, None, None, None]
        estimate = x - times * f
        coefficients = torch.tensor([move.row.coefficients for move in moves], device=self.device)
        noise = None
        noisy = [i for i, move in enumerate(moves) if move.row.coefficients[4] != 0.0]
        if noisy:
            draws = torch.tensor([moves[i].row.draw for i in noisy], device=self.device)
            noise = torch.zeros_like(x)
            noise[noisy] = self._noise(seeds[noisy], draws, STEP_NOISE)
        x, h1, h2 = sampler_update(x, f, h1, h2, coefficients, noise)
        self.store[slots] = torch.stack((x, h1, h2), dim=1)
        finite = torch.isfinite(x).flatten(1).all(dim=1).tolist()
        outcomes: list[LatentOutcome] = []
        for i, move in enumerate(moves):
            if not finite[i]:
                outcomes.append(RowError("the model's output for this request is not finite"))
            elif move.picture:
                outcomes.append(self._picture(x[i] if move.final else estimate[i]))
            else:
                outcomes.append(None)
        return outcomes

    def _evaluate(self, moves: Sequence[LatentMove], x: Tensor) -> Tensor:
        """The network's output [R, C, H, W] with guidance; rows that need the unconditional output too are evaluated twice."""
        null = [self.network.config.null_token_id]
        paired = [i for i, move in enumerate(moves) if move.row.guidance != 1.0 and not move.row.takes_target]
        inputs = [(move, move.caption) for move in moves] + [(moves[i], moves[i].negative or null) for i in paired]
        index = torch.tensor(list(range(len(moves))) + paired, device=self.device)
        captions = [text for _, text in inputs]
        t = torch.tensor([move.row.t for move, _ in inputs], device=self.device)
        s = torch.tensor([move.row.s if move.row.takes_target else move.row.t for move, _ in inputs], device=self.device)
        scale = torch.tensor([move.row.guidance if move.row.takes_target else 1.0 for move, _ in inputs], device=self.device)
        if isinstance(self._evaluator, KernelFlow):
            self._threads.leave_to_kernel()
        else:
            self._threads.take(self._row_operations * (1 if self._batch_invariant else len(inputs)))
        x = x[index]
        if self._batch_invariant:
            every = [slice(i, i + 1) for i in range(len(t))]
            out = torch.cat([self._evaluator(x[i], t[i], s[i], scale[i], captions[i]) for i in every])
        else:
            out = self._evaluator(x, t, s, scale, captions)
        f = out[: len(moves)]
        if paired:
            f = f.clone()
            guided = torch.tensor(paired, device=self.device)
            w = torch.tensor([moves[i].row.guidance for i in paired], device=self.device)[:, None, None, None]
            unconditional = out[len(moves) :]
            f[guided] = unconditional + w * (f[guided] - unconditional)
        return f

    def _noise(self, seeds: Tensor, draws: Tensor, purpose: int) -> Tensor:
        size = self.shape[0] * self.shape[1] * self.shape[2]
        return normal(seeds, draws, purpose, size).view(-1, *self.shape)

    def _picture(self, x: Tensor) -> Picture:
        rgb = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        return Picture(rgb.shape[1], rgb.shape[0], rgb.cpu().numpy().tobytes())
