"""Layers by the names that networks were published with, where diffusers' differ; with `_` for dots on both sides."""

from __future__ import annotations

import re

INNER = {"in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_3": "conv2", "skip_connection": "conv_shortcut"}
OUTER = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip

_JOINT, _SINGLE = "transformer_blocks_{}", "single_transformer_blocks_{}"
TRANSFORMERS = (
    # FLUX.1
    (r"double_blocks_(\d+)_img_attn_qkv", tuple(f"{_JOINT}_attn_to_{part}" for part in "qkv")),
    (r"double_blocks_(\d+)_txt_attn_qkv", tuple(f"{_JOINT}_attn_add_{part}_proj" for part in "qkv")),
    (r"double_blocks_(\d+)_img_attn_proj", (f"{_JOINT}_attn_to_out_0",)),
    (r"double_blocks_(\d+)_txt_attn_proj", (f"{_JOINT}_attn_to_add_out",)),
    (r"double_blocks_(\d+)_img_mlp_0", (f"{_JOINT}_ff_net_0_proj",)),
    (r"double_blocks_(\d+)_img_mlp_2", (f"{_JOINT}_ff_net_2",)),
    (r"double_blocks_(\d+)_txt_mlp_0", (f"{_JOINT}_ff_context_net_0_proj",)),
    (r"double_blocks_(\d+)_txt_mlp_2", (f"{_JOINT}_ff_context_net_2",)),
    (r"double_blocks_(\d+)_img_mod_lin", (f"{_JOINT}_norm1_linear",)),
    (r"double_blocks_(\d+)_txt_mod_lin", (f"{_JOINT}_norm1_context_linear",)),
    (r"single_blocks_(\d+)_linear1", (*(f"{_SINGLE}_attn_to_{part}" for part in "qkv"), f"{_SINGLE}_proj_mlp")),
    (r"single_blocks_(\d+)_linear2", (f"{_SINGLE}_proj_out",)),
    (r"single_blocks_(\d+)_modulation_lin", (f"{_SINGLE}_norm_linear",)),
    (r"img_in", ("x_embedder",)),
    (r"txt_in", ("context_embedder",)),
    (r"time_in_(in|out)_layer", ("time_text_embed_timestep_embedder_linear_{}",)),
    (r"vector_in_(in|out)_layer", ("time_text_embed_text_embedder_linear_{}",)),
    (r"guidance_in_(in|out)_layer", ("time_text_embed_guidance_embedder_linear_{}",)),
    (r"final_layer_linear", ("proj_out",)),
    # FLUX.2, where it differs
    (r"double_blocks_(\d+)_img_mlp_0", (f"{_JOINT}_ff_linear_in",)),
    (r"double_blocks_(\d+)_img_mlp_2", (f"{_JOINT}_ff_linear_out",)),
    (r"double_blocks_(\d+)_txt_mlp_0", (f"{_JOINT}_ff_context_linear_in",)),
    (r"double_blocks_(\d+)_txt_mlp_2", (f"{_JOINT}_ff_context_linear_out",)),
    (r"single_blocks_(\d+)_linear1", (f"{_SINGLE}_attn_to_qkv_mlp_proj",)),
    (r"single_blocks_(\d+)_linear2", (f"{_SINGLE}_attn_to_out",)),
    (r"(single_stream_modulation|double_stream_modulation_(?:img|txt))_lin", ("{}_linear",)),
    (r"time_in_(in|out)_layer", ("time_guidance_embed_timestep_embedder_linear_{}",)),
    (r"guidance_in_(in|out)_layer", ("time_guidance_embed_guidance_embedder_linear_{}",)),
    # Z-Image
    (r"((?:layers|noise_refiner|context_refiner)_\d+)_attention_qkv", tuple(f"{{}}_attention_to_{part}" for part in "qkv")),
    (r"((?:layers|noise_refiner|context_refiner)_\d+)_attention_out", ("{}_attention_to_out_0",)),
)
"""Names of published transformers, and the layers whose outputs, one behind the other, are theirs."""


def transformer_layers(published: str) -> list[tuple[str, ...]]:
    """diffusers' layers of which a layer of a published transformer consists, of each transformer that has one of this name."""
    every = []
    for pattern, layers in TRANSFORMERS:
        found = re.fullmatch(pattern, published)
        if found:
            group = found[1] if found.groups() else ""
            every.append(tuple(layer.format({"in": "1", "out": "2"}.get(group, group)) for layer in layers))
    return every


def unet_layer(published: str, resnets: int) -> str:
    """diffusers' name of a layer of the UNet of Stable Diffusion, which has so many residual blocks on a level on the way
    down; "" for what is none."""
    if published in OUTER:
        return OUTER[published]
    found = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", published)
    middle = re.fullmatch(r"middle_block_([012])_(.+)", published)
    if middle:
        part = "attentions_0" if middle[1] == "1" else f"resnets_{int(middle[1]) // 2}"
        return f"mid_block_{part}_{INNER.get(middle[2], middle[2])}"
    if not found or not resnets:
        return ""
    down, number, place, rest = found[1] == "input", int(found[2]), int(found[3]), found[4]
    block, layer = divmod(number - down, resnets + 1)
    if rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    part = "attentions" if place else "resnets"
    return f"{'down' if down else 'up'}_blocks_{block}_{part}_{layer}_{INNER.get(rest, rest)}"
