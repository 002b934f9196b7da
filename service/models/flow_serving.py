"""How a flow transformer is run for requests: by the CPU kernel where there is one, else by the network itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.cpu import CpuFlow, FlowBlockWeights, FlowWeights, library, pack
from service.models.flow_transformer import Block, FlowTransformer

KEPT_CAPTIONS = 1024


class FlowEvaluator(Protocol):
    """u(x, t, s; guidance, caption) of a batch, each row with a caption of its own length."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
        """x float32 [R, C, H, W]; t, s and guidance float32 [R]; R captions of token ids -> float32 like x."""
        ...


class TorchFlow:
    """The network as it is, with captions padded to the longest, or to the longest that there can be (`full`)."""

    def __init__(self, network: FlowTransformer, full: bool = False) -> None:
        self._network, self._full = network, full

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
        config = self._network.config
        length = config.max_text_tokens if self._full else max(map(len, captions))
        text = torch.tensor([[*ids, *[config.pad_token_id] * (length - len(ids))] for ids in captions], device=x.device)
        return self._network(x, t, s, guidance, text).float()


class KernelFlow:
    """The same numbers, to rounding, from packed weights: no padding, and a caption's own layers run once a caption.

    Takes the blocks and the head out of the network: their weights are then held once, packed.
    """

    def __init__(self, network: FlowTransformer, threads: int) -> None:
        """`threads` of a forward. Raises ValueError where the kernel has not the network's shape."""
        self.threads = threads
        self._network = network
        self._kernel = CpuFlow(_weights(network))
        del network.blocks, network.decode_up, network.head
        self._words: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
        network, rows = self._network, len(x)
        condition = network.condition(t, s, guidance)
        modulation = network.modulation_head(condition).view(rows, 6, -1).float()
        last = network.final_modulation_head(condition).view(rows, 2, -1).float()
        words = [self._caption(tuple(ids)) for ids in captions]
        tokens = torch.cat([network.patches(x).flatten(0, 1).float(), *words])
        starts = torch.tensor([0, *map(len, words)]).cumsum(0)
        decoded = self._kernel.forward(tokens, modulation, last, starts, self.threads)
        return network.velocity(x, t, decoded.view(rows, network.config.patches, -1))

    def _caption(self, ids: tuple[int, ...]) -> Tensor:
        """A caption's words float32 [T, width], kept for its next evaluations."""
        found = self._words.get(ids)
        if found is None:
            found = self._network.words(torch.tensor([ids]))[0].float()
            self._words[ids] = found
            if len(self._words) > KEPT_CAPTIONS:
                self._words.popitem(last=False)
        self._words.move_to_end(ids)
        return found


def flow_evaluator(network: FlowTransformer, threads: int, full: bool = False) -> TorchFlow | KernelFlow:
    """The fastest way to run this network where it lies."""
    if next(network.parameters()).device.type == "cpu" and library() is not None:
        try:
            return KernelFlow(network, threads)
        except ValueError:
            pass
    return TorchFlow(network, full)


def _weights(network: FlowTransformer) -> FlowWeights:
    config = network.config
    cosine, sine = network.cosine[: config.patches], network.sine[: config.patches]
    return FlowWeights(
        blocks=[_block(block) for block in network.blocks if isinstance(block, Block)],
        decode=pack(network.decode_up.weight, network.decode_up.bias),
        head=pack(network.head.weight, network.head.bias),
        cosines=cosine.float().contiguous(),
        sines=sine.float().contiguous(),
        width=config.width,
        heads=config.heads,
        side=config.image_size // config.patch_size,
        epsilon=1e-6,
    )


def _block(block: Block) -> FlowBlockWeights:
    mixing = block.neighbours_embed
    assert mixing.bias is not None
    return FlowBlockWeights(
        qkv=pack(block.qkv.weight),
        out=pack(block.attention_out.weight),
        up=pack(block.up.weight),
        down=pack(block.down.weight),
        modulation=block.modulation_embed.detach().float().contiguous(),
        gains=block.attention_scale_embed.detach().float().flatten().contiguous(),
        filters=mixing.weight.detach().float().flatten(1).t().contiguous(),
        bias=mixing.bias.detach().float().contiguous(),
    )
