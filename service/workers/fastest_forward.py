"""Which of the implementations of a forward runs a network."""

from __future__ import annotations

from service.models.decoder import Decoder
from service.models.decoder_serving import kernel_decoder
from service.models.errors import ModelError
from service.workers.forward import Forward
from service.workers.kernel_forward import KernelForward
from service.workers.paged_cache import PagedCache
from service.workers.threads import Threads
from service.workers.torch_forward import TorchForward


def fastest_forward(
    network: Decoder, cache: PagedCache, threads: Threads, batch_invariant: bool, shared: Forward | None = None
) -> Forward:
    """The CPU kernel where it can run the network, else torch. The network is taken over: its layers are fused in place, or
    its weights packed. One that has the embeddings and the head of `shared` is run by what runs that; raises ModelError where
    it cannot be."""
    network.fuse()
    if shared is not None and not isinstance(shared, KernelForward):
        return TorchForward(network, cache, threads, batch_invariant)
    decoder = kernel_decoder(network, cache.store, None if shared is None else shared.decoder)
    if decoder is not None:
        return KernelForward(decoder, threads)
    if shared is not None:
        raise ModelError("heads: the CPU kernel runs the model, and cannot run their layer")
    return TorchForward(network, cache, threads, batch_invariant)
