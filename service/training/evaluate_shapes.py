"""Measures of a `shapes` model on held-out captions."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from service.models.flow_transformer import FlowTransformer
from service.training.caption_tokenizer import encode_captions
from service.training.scene_checker import accuracy
from service.training.scenes import draw_scenes


@torch.no_grad()
def sample_euler(network: FlowTransformer, text: Tensor, empty: Tensor, x: Tensor, steps: int, guidance: float) -> Tensor:
    """Pictures by Euler steps from noise x [B, C, H, W], with classifier-free guidance in two rows."""
    count = len(x)
    ones = torch.ones(2 * count)
    for step in range(steps):
        t = ones * (1 - step / steps)
        both = network(torch.cat([x, x]), t, t, ones, torch.cat([text, empty])).float()
        conditional, unconditional = both.chunk(2)
        x = x - torch.lerp(unconditional, conditional, guidance) / steps
    return x


@torch.no_grad()
def sample_flow_map(network: FlowTransformer, text: Tensor, x: Tensor, jumps: int, guidance: float) -> Tensor:
    """Pictures by equal jumps of the flow map from noise x [B, C, H, W], the guidance scale being an input."""
    ones = torch.ones(len(x))
    for jump in range(jumps):
        x = x - network(x, ones * (1 - jump / jumps), ones * (1 - (jump + 1) / jumps), guidance * ones, text).float() / jumps
    return x


def quick_accuracy(
    network: FlowTransformer, tokenizer: Tokenizer, captions: int, *, with_flow_map: bool, guidance: float = 3.0
) -> dict[str, float]:
    """Accuracy on a few held-out captions: 16 Euler steps, by number of objects, and 1 to 8 jumps of the flow map."""
    held_out = draw_scenes((7, 7), captions, held_out=True)
    encoded = encode_captions(tokenizer, [*(scene.caption for scene in held_out.scenes), ""])
    text, empty = encoded[:-1], encoded[-1:].expand(captions, -1)
    noise = torch.randn(held_out.images.shape, generator=torch.Generator().manual_seed(7))
    pictures = sample_euler(network, text, empty, noise, 16, guidance)
    results = {"euler16": accuracy(pictures, held_out.scenes)}
    for number in (1, 2, 3):
        rows = [k for k, scene in enumerate(held_out.scenes) if len(scene.objects) == number]
        if rows:
            results[f"objects{number}"] = accuracy(pictures[rows], [held_out.scenes[k] for k in rows])
    if with_flow_map:
        for jumps in (1, 2, 4, 8):
            pictures = sample_flow_map(network, text, noise, jumps, guidance)
            results[f"jumps{jumps}"] = accuracy(pictures, held_out.scenes)
    return results
