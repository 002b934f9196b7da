"""One rank's part of a decoder: a decoder of fewer heads and narrower layers, whose ranks sum what each adds to the stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.collective import Group
from service.models.decoder import Decoder, Experts, FeedForward, SelfAttention, softcapped
from service.models.decoder_config import DecoderConfig
from service.models.errors import ModelError
from service.models.filling import Share, Target, places
from service.models.normalisation import RMSNorm
from service.models.partition import Partition


class TokenRange(nn.Embedding):
    """Embeddings of the tokens first, first + 1, ...; other ranks have the others."""

    def __init__(self, first: int, rows: int, size: int, group: Group) -> None:
        super().__init__(rows, size, _weight=torch.empty(rows, size))
        self._first = first
        self._group = group

    def forward(self, tokens: Tensor) -> Tensor:
        own = tokens - self._first
        others = (own < 0) | (own >= self.num_embeddings)
        x = F.embedding(own.clamp(0, self.num_embeddings - 1), self.weight)
        return self._group.sum(x.masked_fill(others[:, None], 0.0))


class SharedNorm(RMSNorm):
    """Over the heads of all ranks, of which this one has as many as each other."""

    def __init__(self, norm: RMSNorm, group: Group) -> None:
        assert norm.weight is not None
        super().__init__(len(norm.weight), norm.eps)
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean = self._group.sum(wide.square().mean(dim=-1, keepdim=True)) / self._group.partition.size
        normed = wide * torch.rsqrt(mean + self.eps)
        return (normed if self.weight is None else normed * self.weight).to(x.dtype)


class ParallelDecoder(Decoder):
    """`config` is this rank's. Every rank must be given the same input at the same time; the logits are rank 0's."""

    def __init__(self, whole: DecoderConfig, group: Group) -> None:
        """Raises ValueError for a decoder that cannot be divided among so many ranks."""
        partition = group.partition
        super().__init__(partition.config(whole))
        self.whole = whole
        self.group = group
        self._ranges = [Partition(rank, partition.size).range(whole.vocab_size) for rank in range(partition.size)]
        first, stop = partition.range(whole.vocab_size)
        self.model.embed_tokens = TokenRange(first, stop - first, whole.hidden_size, group)
        if not whole.tie_word_embeddings:
            self.lm_head = nn.Linear(whole.hidden_size, stop - first, bias=False)
        for module in list(self.modules()):
            if isinstance(module, SelfAttention):
                self._divide(module)
            elif isinstance(module, FeedForward) and partition.rank:
                module.down_proj.register_parameter("bias", None)
        inside = {part for module in self.modules() if isinstance(module, Experts) for part in module.modules()}
        for module in self.modules():
            if isinstance(module, SelfAttention | Experts) or (isinstance(module, FeedForward) and module not in inside):
                module.register_forward_hook(lambda module, given, summand: group.sum(summand))

    def _divide(self, attention: SelfAttention) -> None:
        if self.group.partition.rank:
            attention.o_proj.register_parameter("bias", None)
        if attention.qk_norm == "full":
            attention.q_norm = SharedNorm(attention.q_norm, self.group)
            attention.k_norm = SharedNorm(attention.k_norm, self.group)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, d] -> float32 [M, V]; on other ranks than the first those of their own tokens, without soft-capping."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        own = F.linear(hidden, head.weight)
        if not len(hidden):
            return own.new_empty(0, self.whole.vocab_size, dtype=torch.float32)
        sizes = [stop - start for start, stop in self._ranges]
        parts = self.group.gather(F.pad(own, (0, max(sizes) - own.shape[1])))
        if parts is None:
            return own.float()
        logits = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
        return softcapped(logits.float(), self.config.logit_softcap)


def divided(whole: Decoder, partition: Partition) -> ParallelDecoder:
    """One rank's part, fused and without numbers. Raises ModelError, which names the field that cannot be divided."""
    try:
        with torch.device("meta"):
            network = ParallelDecoder(whole.config, Group(partition))
    except ValueError as error:
        raise ModelError(f"tensor_parallel is {partition.size}: {error}") from error
    network.fuse()
    return network


def shares(network: ParallelDecoder, whole: Decoder) -> dict[str, Target]:
    """Where this rank's parts of a checkpoint's tensors go, by name. `whole` has the shapes of all, fused as `network` is."""
    own, partition = places(network), network.group.partition
    return {
        name: Share(own.get(name), place.shape, partition.cut(name, place.shape, network.whole))
        for name, place in places(whole).items()
    }
