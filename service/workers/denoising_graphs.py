"""Evaluations of a latent network, captured at small numbers of rows, where launching kernels takes longer than they do."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.capture import Capture
from service.models.latent_network import Adapters, Condition, LatentNetwork, PackableNetwork
from service.models.reuse_memory import Reuse
from service.workers.graphs import CapturedRows

log = logging.getLogger("stride.models")

SIZES = (1, 2, 3, 4, 6, 8)
"""Rows: a larger forward keeps a GPU busy longer than the host needs for it."""
MOST_SHAPES = 8
"""Sizes of pictures that are captured; those that come later are evaluated as they are."""


class DenoisingGraphs:
    """Of networks whose conditions are tensors of one shape. A graph belongs to one size of pictures, and is captured the first
    time that a forward of its size comes, unless that was prepared. Pictures of a size whose evaluation cannot be captured, as
    where memory is short, are evaluated as they are."""

    def __init__(self, network: PackableNetwork, device: torch.device, capture: Capture) -> None:
        self._network = network
        self._device = device
        self._capture = capture
        self._graphs: dict[tuple[int, ...], CapturedRows | None] = {}

    def prepare(self) -> None:
        """Capture whatever number of rows is still missing of the sizes of pictures that came so far."""
        for shape, graphs in list(self._graphs.items()):
            try:
                if graphs is not None:
                    graphs.prepare()
            except RuntimeError as error:
                self._give_up(shape, error)

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters],
        reuse: Sequence[Reuse | None],
    ) -> Tensor | None:  # fmt: skip
        """What `LatentNetwork.evaluate` gives, to be read before the next call; None where these rows are not captured: too
        many, with adapters, or with evaluations that are skipped by what they hold."""
        if len(x) > SIZES[-1] or any(adapters) or any(reuse):
            return None
        packed = self._network.pack(conditions)
        shape = x.shape[1:]
        if shape not in self._graphs:
            if len(self._graphs) == MOST_SHAPES:
                return None
            padding = [torch.zeros_like(tensor[0]) for tensor in (x, t, s, guidance, *packed)]
            # Time 0 may be a border where an equation ends; any time in between will do.
            padding[1].fill_(0.5)
            padding[2].fill_(0.5)
            self._graphs[shape] = CapturedRows(self._evaluate, padding, SIZES, self._capture)
        graphs = self._graphs[shape]
        try:
            return None if graphs is None else graphs(x, t, s, guidance, *packed)
        except RuntimeError as error:
            self._give_up(shape, error)
            return None

    def _give_up(self, shape: tuple[int, ...], error: RuntimeError) -> None:
        log.warning("evaluations of latents of %s are not captured: %s", tuple(shape), str(error).splitlines()[0])
        self._graphs[shape] = None

    def _evaluate(self, rows: int, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, *packed: Tensor) -> Tensor:
        return self._network.evaluate_packed(x, t, s, guidance, *packed)


def denoising_graphs(network: LatentNetwork, device: torch.device, capture: Capture | None) -> DenoisingGraphs | None:
    """None where nothing is captured: there is nothing that could, or the network's conditions differ in shape."""
    if capture is None or not isinstance(network, PackableNetwork):
        return None
    return DenoisingGraphs(network, device, capture)
