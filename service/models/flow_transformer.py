"""A text-conditioned transformer over image patches whose output is an average velocity: one network for every sampler.

u(x, t, s) is the mean of the velocity over [s, t] along the flow that leads from x at time t, so that x_s = x - (t-s) u
(MeanFlow, arXiv 2505.13447); u(x, t, t) is the instantaneous velocity of flow matching. Time runs from t=1 (noise) to
t=0 (data) with x_t = (1-t) x0 + t eps. Text and patches form one sequence under full attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.adaptive_norm import gate_added, gate_added_modulated, modulated

MODEL_TYPE = "stride_flow_transformer"


@dataclass(frozen=True)
class FlowTransformerConfig:
    """Shape and constants of a FlowTransformer; `guidance_range` is what the guidance input was trained on. `scorers` judge its
    pictures. A patch's token also sees `patch_margin` pixels on each side of it."""

    vocab_size: int
    image_size: int = 32
    channels: int = 3
    patch_size: int = 8
    patch_margin: int = 0
    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp_ratio: int = 4
    max_text_tokens: int = 16
    pad_token_id: int = 0
    null_token_id: int = 1
    caption_window: int = 7
    min_time: float = 0.05
    guidance_range: tuple[float, float] = (1.0, 4.0)
    signature: Mapping[str, Any] = field(default_factory=lambda: {"kind": "flow_map", "guidance_input": True})
    scorers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.patch_margin < 0:
            raise ValueError("patch_margin must not be negative")
        if self.caption_window < 1 or self.caption_window % 2 == 0:
            raise ValueError("caption_window must be odd")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        if self.signature.get("kind") != "flow_map" or not self.signature.get("guidance_input"):
            raise ValueError("a FlowTransformer is a flow map with guidance as an input")

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> FlowTransformerConfig:
        """From a `config.json`; raises ValueError for another kind of model or for settings it does not know."""
        settings = dict(json)
        if settings.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE!r}, not {json.get('model_type')!r}")
        unknown = settings.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of a flow transformer: {', '.join(sorted(unknown))}")
        if "guidance_range" in settings:
            low, high = settings["guidance_range"]
            settings["guidance_range"] = (float(low), float(high))
        return cls(**settings | {"scorers": tuple(settings.get("scorers", ()))})

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        content = asdict(self)
        return {"model_type": MODEL_TYPE, **content, "guidance_range": list(self.guidance_range), "scorers": list(self.scorers)}

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class ScalarEmbedding(nn.Module):
    """A number a row, [B] -> [B, width], through sines and cosines of `frequencies` geometric frequencies."""

    scales: Tensor

    def __init__(self, width: int, frequencies: int = 64, highest: float = 500.0) -> None:
        super().__init__()
        scales = torch.exp(torch.linspace(0.0, math.log(highest), frequencies))
        self.register_buffer("scales", scales, persistent=False)
        self.embed_in = nn.Linear(2 * frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        angles = value.float()[:, None] * self.scales
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.embed_in.weight.dtype)
        return self.out(F.silu(self.embed_in(features)))


class CaptionStem(nn.Module):
    """Gives every word of a caption its neighbours: a convolution over `window` words and an MLP, added to the word.

    A relation ties the objects on its two sides; attention over single words finds that out late in training, and here
    the first block already sees phrases. Padding counts as nothing, so a row does not depend on the longest caption.
    """

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.neighbours_embed = nn.Conv1d(width, 2 * width, window, padding=window // 2)
        self.out = nn.Linear(2 * width, width)

    def forward(self, words: Tensor, present: Tensor) -> Tensor:
        """words [B, T, width], present bool [B, T] -> [B, T, width]."""
        words = words * present.unsqueeze(-1)
        phrases = self.neighbours_embed(words.transpose(1, 2)).transpose(1, 2).contiguous()
        return words + self.out(F.relu(phrases).square())


class Block(nn.Module):
    """Attention and MLP on one sequence, both modulated by the row's times and guidance (adaLN-zero, arXiv 2212.09748).

    The modulation is shared by all blocks up to a learned offset in each (adaLN-single, arXiv 2310.00426); queries and
    keys are normalised (arXiv 2302.05442).
    """

    def __init__(self, config: FlowTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_scale_embed = nn.Parameter(torch.ones(config.heads, 1, 1))
        self.attention_out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, config.mlp_ratio * width, bias=False)
        self.down = nn.Linear(config.mlp_ratio * width, width, bias=False)
        self.neighbours_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.modulation_embed = nn.Parameter(torch.zeros(6, width))
        self.patches_a_side = config.image_size // config.patch_size

    def forward(
        self, tokens: Tensor, modulation: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor], last: bool = False
    ) -> Tensor:
        """tokens [B, N, width], modulation [B, 6, width], mask bool [B, 1, 1, N] (true: may be attended to) -> the tokens,
        of the `last` block those of the patches alone."""
        parts = (modulation + self.modulation_embed).to(tokens.dtype).unsqueeze(2).unbind(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        patches = self.patches_a_side**2
        query, key, value = self._heads(self.qkv(modulated(tokens, shift1, scale1, centred=False)), rotation)
        if last:
            tokens, query = tokens[:, :patches], query[:, :, :patches]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = self.attention_out(attended.transpose(1, 2).flatten(2))
        tokens, hidden = gate_added_modulated(tokens, gate1, attended.to(tokens.dtype), shift2, scale2, centred=False)
        hidden = torch.cat([self._mix_neighbours(hidden), hidden[:, patches:]], dim=1)
        return gate_added(tokens, gate2, self.down(F.relu(self.up(hidden)).square()).to(tokens.dtype))

    def _heads(self, projected: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, N, D] of a projection [B, N, 3 width]; the first two normalised and rotated."""
        qkv = projected.unflatten(2, (3, self.heads, -1))
        gains = torch.cat([self.attention_scale_embed, torch.ones_like(self.attention_scale_embed)], dim=1)
        cosine, sine = (part[:, None, None] * gains.transpose(0, 1) for part in rotation)
        both = F.rms_norm(qkv[:, :, :2], qkv.shape[-1:], eps=1e-6)
        query, key = rotate(both, (cosine, sine)).transpose(1, 3).unbind(2)
        return query, key, qkv[:, :, 2].transpose(1, 2)

    def _mix_neighbours(self, hidden: Tensor) -> Tensor:
        """The patches [B, patches, width] of a sequence, each with a weighted sum of its 3x3 neighbourhood added."""
        side = self.patches_a_side
        patches = hidden[:, : side * side]
        plane = patches.transpose(1, 2).unflatten(2, (side, side))
        return patches + self.neighbours_embed(plane).flatten(2).transpose(1, 2).to(patches.dtype)


def rotate(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (arXiv 2104.09864): vectors [..., D] turned by the cosines and signed sines of `rotary_table`."""
    cosine, sine = (part.to(vectors.dtype) for part in rotation)
    first, second = vectors.chunk(2, dim=-1)
    return torch.addcmul(vectors * cosine, torch.cat([second, first], dim=-1), sine)


def rotary_table(config: FlowTransformerConfig, highest: float = 1.5, lowest: float = 0.15) -> tuple[Tensor, Tensor]:
    """Cosines and sines [patches + max_text_tokens, D], the sines of the first half negative: `rotate` swaps the halves.

    Rows turn one half of the pairs, columns the other. Text is not turned: its position is in its embedding.
    """
    side, pairs = config.image_size // config.patch_size, config.width // config.heads // 2
    rates = highest * (lowest / highest) ** (torch.arange(pairs // 2) / max(pairs // 2 - 1, 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], dim=1)
    angles = F.pad(angles, (0, 0, 0, config.max_text_tokens))
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=1), torch.cat([-sine, sine], dim=1)


class FlowTransformer(nn.Module):
    """u(x, t, s; guidance, text). Inside, the network predicts D, and u = (x - D) / t.

    D is a picture at both ends: E[x0 | x] when s = t, the end of the flow when s = 0. Pictures are easier to predict
    than noise (arXiv 2511.13720). Rows do not influence one another.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: FlowTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_embed = nn.Embedding(config.vocab_size, width)
        self.text_position_embed = nn.Parameter(torch.zeros(config.max_text_tokens, width))
        self.caption_stem = CaptionStem(width, config.caption_window)
        self.patch_embed = nn.Linear(config.channels * (config.patch_size + 2 * config.patch_margin) ** 2, width)
        self.patch_position_embed = nn.Parameter(torch.zeros(config.patches, width))
        self.time_embed = ScalarEmbedding(width)
        self.span_embed = ScalarEmbedding(width)
        self.guidance_embed = ScalarEmbedding(width, highest=50.0)
        self.modulation_head = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_modulation_head = nn.Linear(width, 2 * width)
        self.decode_up = nn.Linear(width, config.mlp_ratio * width)
        self.head = nn.Linear(config.mlp_ratio * width, config.channels * config.patch_size**2)
        cosine, sine = rotary_table(config)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.text_embed.weight, self.text_position_embed, self.patch_position_embed):
            nn.init.normal_(parameter, std=0.3)
        for embedding in (self.span_embed, self.guidance_embed):
            nn.init.zeros_(embedding.out.weight)
        nn.init.normal_(self.modulation_head.weight, std=0.02)
        nn.init.zeros_(self.final_modulation_head.weight)
        nn.init.zeros_(self.head.weight)
        for block in self.blocks:
            assert isinstance(block, Block)
            with torch.no_grad():
                block.modulation_embed[[2, 5]] = 1.0 / math.sqrt(self.config.depth)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, text: Tensor) -> Tensor:
        """x [B, C, H, W]; t, s (s <= t) and guidance (1 = none) float [B]; text ids [B, T], padded -> u like x."""
        condition = self.condition(t, s, guidance)
        modulation = self.modulation_head(condition).view(x.shape[0], 6, -1)
        patches = self.patches(x)
        tokens = torch.cat([patches, self.words(text).to(patches.dtype)], dim=1)
        mask = F.pad(text != self.config.pad_token_id, (self.config.patches, 0), value=True)[:, None, None, :]
        rotation = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, modulation, mask, rotation, last=index == len(self.blocks) - 1)
        shift, scale = self.final_modulation_head(condition).to(tokens.dtype).unsqueeze(1).chunk(2, dim=-1)
        decoded = F.relu(self.decode_up(modulated(tokens, shift, scale, centred=False))).square()
        return self.velocity(x, t, self.head(decoded))

    def condition(self, t: Tensor, s: Tensor, guidance: Tensor) -> Tensor:
        """What modulates a row's blocks, [B, width]."""
        return F.silu(self.time_embed(t) + self.span_embed(t - s) + self.guidance_embed(guidance.float().log()))

    def patches(self, x: Tensor) -> Tensor:
        """The image's tokens, [B, patches, width]."""
        return self.patch_embed(self._to_patches(x)) + self.patch_position_embed

    def words(self, text: Tensor) -> Tensor:
        """The caption's tokens, [B, T, width]; they depend on the caption alone."""
        present = text != self.config.pad_token_id
        return self.caption_stem(self.text_embed(text) + self.text_position_embed[: text.shape[1]], present)

    def velocity(self, x: Tensor, t: Tensor, decoded: Tensor) -> Tensor:
        """u like x from the head's output [B, patches, C * patch_size^2], which is a picture."""
        duration = t.float().clamp_min(self.config.min_time).view(-1, 1, 1, 1)
        return ((x.float() - self._to_pixels(decoded).float()) / duration).to(x.dtype)

    def _to_patches(self, x: Tensor) -> Tensor:
        size, margin = self.config.patch_size, self.config.patch_margin
        windows = F.pad(x, (margin,) * 4).unfold(2, size + 2 * margin, size).unfold(3, size + 2 * margin, size)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).to(self.patch_embed.weight.dtype)

    def _to_pixels(self, patches: Tensor) -> Tensor:
        size, channels, side = self.config.patch_size, self.config.channels, self.config.image_size
        cut = patches.reshape(patches.shape[0], side // size, side // size, channels, size, size)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(patches.shape[0], channels, side, side)
