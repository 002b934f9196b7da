"""Class-conditional diffusion transformers: DiT, SiT and two-time variants of them, one network with their tensor names.

DiT (arXiv 2212.09748) predicts the noise of a variance preserving process of 1000 steps; SiT (arXiv 2401.08740) is the same
network trained as a flow; MeanFlow (arXiv 2505.13447) gives it a second time, so that it is an average velocity, and improved
MeanFlow (arXiv 2512.02012) the guidance scale. Patches form one sequence under full attention; times and class modulate every
block (adaLN-zero). The names of the parameters are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from service.models.adaptive_norm import gate_added, gate_added_modulated, modulated

MODEL_TYPE = "stride_dit"
FREQUENCIES = 128

Count = Annotated[int, Meta(ge=1)]
Layout = Literal["dit", "sit", "meanflow"]

_OF_LAYOUT: dict[str, dict[str, Any]] = {
    "dit": {"learn_sigma": True, "data_time": 0},
    "sit": {"learn_sigma": True, "data_time": 1},
    "meanflow": {"learn_sigma": False, "data_time": 0},
}
"""What their published checkpoints have, where config.json does not say."""


class DitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `config.json`, beside `"model_type": "stride_dit"`.

    layout: which of the three it is: `dit` (noise prediction at steps 0 to 999), `sit` (velocity) or `meanflow` (average
        velocity between two times).
    depth, width, heads, patch_size, mlp_ratio: the transformer; `DiT-XL/2` is 28, 1152, 16, 2, 4.
    input_size, channels: of the latent, or of the picture where the folder has no `vae`.
    classes: how many; `null_class`: whether one more, the last, stands for no class. `labels`: their names, several of one
        class parted by commas.
    learn_sigma: there are twice as many output channels, the second half of them a variance, which is not used.
    data_time: which time is data for a flow network: SiT's is 1, MeanFlow's 0. `time_scale`: the network is told so many
        times the time.
    second_time: what the second time embedder of `meanflow` is told, the span t - s between the times or the target s.
    guidance_input: the two-time network has a third embedder, for the guidance scale; `guidance_range` is what it knows.
    downscale_freq_shift: 0 as published; 1 in diffusers' DiT, whose frequencies end one step lower. `mlp_norm_eps`: of the
        norm before the MLP. `own_embedders`: every block embeds time and class itself, which diffusers' DiT does.
    """

    layout: Layout
    depth: Count
    width: Count
    heads: Count
    patch_size: Count
    input_size: Count = 32
    channels: Count = 4
    classes: Count = 1000
    null_class: bool = True
    labels: dict[int, str] = {}
    mlp_ratio: Annotated[float, Meta(gt=0.0)] = 4.0
    learn_sigma: bool
    data_time: Literal[0, 1]
    time_scale: Annotated[float, Meta(gt=0.0)] = 1.0
    second_time: Literal["span", "target"] = "span"
    guidance_input: bool = False
    guidance_range: tuple[float, float] = (1.0, 10.0)
    downscale_freq_shift: Literal[0, 1] = 0
    mlp_norm_eps: Annotated[float, Meta(gt=0.0)] = 1e-6
    own_embedders: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, but {self.width} is not (heads {self.heads})")
        if self.input_size % self.patch_size:
            raise ValueError(f"input_size must be a multiple of patch_size ({self.patch_size}), but is {self.input_size}")
        if self.guidance_input and self.layout != "meanflow":
            raise ValueError(f"guidance_input is for layout meanflow, not {self.layout}")
        if not 0.0 < self.guidance_range[0] <= self.guidance_range[1]:
            raise ValueError(f"guidance_range must be two positive numbers, the lower one first, not {self.guidance_range}")
        if any(not 0 <= label < self.classes for label in self.labels):
            raise ValueError(f"labels must be numbered from 0 to {self.classes - 1}")

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> DitConfig:
        """Raises ValueError for another kind of model, a field that is missing, wrong or not known."""
        fields = {key: value for key, value in json.items() if key != "model_type"}
        if json.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE!r}, not {json['model_type']!r}")
        try:
            return msgspec.convert({**_OF_LAYOUT.get(str(fields.get("layout")), {}), **fields}, cls, str_keys=True)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    def to_json(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, **msgspec.to_builtins(self, str_keys=True)}

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.input_size // self.patch_size


def sinusoids(value: Tensor, downscale_freq_shift: int) -> Tensor:
    """A number a row, [R], as cosines and sines of geometric frequencies from 1 to (nearly) 1/10000: float32 [R, 256]."""
    steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=value.device)
    # In this order: an angle of 999 shows the last bit of its frequency.
    angles = value.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (FREQUENCIES - downscale_freq_shift))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(width: int, side: int) -> Tensor:
    """Fixed embeddings of the places of a square grid, float32 [1, side^2, width]: the first half of the channels says the
    column, the second the row, each by sines and cosines (MAE, arXiv 2111.06377)."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float().unsqueeze(0)


class ScalarEmbedder(nn.Module):
    """A number a row, [R] -> [R, width]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.downscale_freq_shift = config.downscale_freq_shift
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, config.width), nn.SiLU(), nn.Linear(config.width, config.width))

    def forward(self, value: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(sinusoids(value, self.downscale_freq_shift).to(dtype))


class LabelEmbedder(nn.Module):
    """A class a row, [R] -> [R, width]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        # Without numbers of its own: on the meta device torch imports its whole compiler to draw them.
        table = torch.empty(config.classes + config.null_class, config.width)
        self.embedding_table = nn.Embedding.from_pretrained(table, freeze=False)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class Attention(nn.Module):
    """Full attention of a sequence to itself, [R, N, width]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        inner = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, inner)
        self.fc2 = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each modulated by the row's condition and gated (adaLN-zero)."""

    def __init__(self, config: DitConfig, own_embedders: bool) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = Mlp(config)
        self.mlp_norm_eps = config.mlp_norm_eps
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.t_embedder = ScalarEmbedder(config) if own_embedders else None
        self.y_embedder = LabelEmbedder(config) if own_embedders else None

    def condition(self, shared: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """What modulates this block, [R, width]: the network's, or its own of scaled times and classes [R]."""
        if self.t_embedder is None or self.y_embedder is None:
            return shared
        return self.t_embedder(t) + self.y_embedder(labels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [R, N, width], condition [R, width] -> like x."""
        parts = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        attended = self.attn(modulated(x, shift1, scale1))
        x, hidden = gate_added_modulated(x, gate1, attended, shift2, scale2, self.mlp_norm_eps)
        return gate_added(x, gate2, self.mlp(hidden))


class FinalLayer(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        outputs = config.channels * (2 if config.learn_sigma else 1)
        self.linear = nn.Linear(config.width, config.patch_size**2 * outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulated(x, shift, scale))


class PatchEmbedder(nn.Module):
    """Non-overlapping patches of [R, C, H, W] as a sequence [R, N, width], row by row."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class DiT(nn.Module):
    """The network in its own convention of time and sign; rows do not influence one another."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = ScalarEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        if config.layout == "meanflow":
            self.r_embedder = ScalarEmbedder(config)
        if config.guidance_input:
            self.w_embedder = ScalarEmbedder(config)
        self.pos_embed = nn.Parameter(grid_positions(config.width, config.side), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config, config.own_embedders and i > 0) for i in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, labels: Tensor) -> Tensor:
        """x [R, C, H, W]; t, s and guidance float32 [R], of which a network without them takes no notice; labels int64 [R]
        -> the prediction like x, without the variance."""
        condition = self.condition(t, s, guidance, labels)
        hidden = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            assert isinstance(block, Block)
            hidden = block(hidden, block.condition(condition, t * self.config.time_scale, labels))
        return self._to_pixels(self.final_layer(hidden, condition)).to(x.dtype)

    def condition(self, t: Tensor, s: Tensor, guidance: Tensor, labels: Tensor) -> Tensor:
        """What modulates a row's blocks, [R, width]."""
        config = self.config
        condition = self.t_embedder(t * config.time_scale)
        if config.layout == "meanflow":
            second = s if config.second_time == "target" else (t - s)
            condition = condition + self.r_embedder(second * config.time_scale)
        if config.guidance_input:
            condition = condition + self.w_embedder(1.0 - 1.0 / guidance.float().clamp(*config.guidance_range))
        return condition + self.y_embedder(labels)

    def _to_pixels(self, patches: Tensor) -> Tensor:
        """[R, N, p * p * outputs] -> [R, C, H, W], the first C of the outputs."""
        config = self.config
        cut = patches.unflatten(2, (config.patch_size, config.patch_size, -1))[..., : config.channels]
        plane = cut.unflatten(1, (config.side, config.side)).permute(0, 5, 1, 3, 2, 4)
        return plane.reshape(len(patches), config.channels, config.input_size, config.input_size)
