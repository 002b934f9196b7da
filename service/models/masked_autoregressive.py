"""A network that makes a picture patch by patch, in any order (MAR, arXiv 2406.11838).

A bidirectional transformer reads the text and the patches that are known, masks in place of the others, and says a vector z at
every position. A small MLP, conditioned on z and on the time by adaptive normalisation (section 4.2 there), is the velocity of
rectified flow of one patch: x_t = (1 - t) x0 + t eps, v = eps - x0. Texts are bags of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.flow_transformer import ScalarEmbedding
from service.models.latent_network import Adapters, Condition, GuidanceInput, Unadapted, classifier_free
from service.models.reuse_memory import Reuse
from service.procedures.noise import NoiseProcess
from service.procedures.sizes import SizeRule

MODEL_TYPE = "stride_masked_autoregressive"


@dataclass(frozen=True)
class MaskedAutoregressiveConfig:
    """Pictures of `image_size` pixels a side in patches of `patch_size`; the transformer, and the MLP of one patch."""

    image_size: int
    patch_size: int
    channels: int = 3
    width: int = 256
    depth: int = 6
    heads: int = 4
    denoiser_width: int = 256
    denoiser_depth: int = 3
    iterations: int = 8
    steps: int = 20

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.heads:
            raise ValueError("image_size must be a multiple of patch_size, and width one of heads")

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> MaskedAutoregressiveConfig:
        """From a `config.json`. Raises ValueError for another kind of model or for settings it does not know."""
        settings = {name: value for name, value in json.items() if name != "model_type"}
        if json.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE!r}, not {json.get('model_type')!r}")
        unknown = settings.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of a {MODEL_TYPE}: {', '.join(sorted(unknown))}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def patch_elements(self) -> int:
        return self.channels * self.patch_size**2


class PatchDenoiser(nn.Module):
    """The velocity of single patches: x [M, P] at times t [M] under z [M, width]."""

    def __init__(self, config: MaskedAutoregressiveConfig) -> None:
        super().__init__()
        width = config.denoiser_width
        self.x_embed = nn.Linear(config.patch_elements, width)
        self.z_embed = nn.Linear(config.width, width)
        self.time = ScalarEmbedding(width)
        self.modulations = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(config.denoiser_depth))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(config.denoiser_depth)
        )
        self.last_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.patch_elements)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        hidden, width = self.x_embed(x), (self.out.in_features,)
        condition = F.silu(self.z_embed(z) + self.time(t))
        for modulation, layer in zip(self.modulations, self.layers, strict=True):
            shift, scale, gate = modulation(condition).chunk(3, dim=-1)
            hidden = hidden + gate * layer(F.layer_norm(hidden, width) * (1 + scale) + shift)
        shift, scale = self.last_modulation(condition).chunk(2, dim=-1)
        return self.out(F.layer_norm(hidden, width) * (1 + scale) + shift)


class MaskedAutoregressive(nn.Module):
    """The transformer and the denoiser; N patches, row by row."""

    def __init__(self, config: MaskedAutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.byte_embed = nn.EmbeddingBag(257, config.width, mode="mean")
        self.patch_embed = nn.Linear(config.patch_elements, config.width)
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + config.side**2, config.width))
        block = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, config.depth, nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.denoiser = PatchDenoiser(config)

    def text(self, text: str) -> Tensor:
        """The vector [width] of a text; no text has one of its own."""
        ids = torch.tensor(list(text.encode()) or [256], device=self.mask.device)
        return self.byte_embed(ids[None])[0]

    def forward(self, patches: Tensor, known: Tensor, text: Tensor) -> Tensor:
        """z [B, N, width] from patches [B, N, P], known bool [B, N] and texts' vectors [B, width]."""
        embedded = torch.where(known[..., None], self.patch_embed(patches), self.mask)
        return self.blocks(torch.cat([text[:, None], embedded], dim=1) + self.positions)[:, 1:]

    def patches(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, P]."""
        return F.unfold(pictures, self.config.patch_size, stride=self.config.patch_size).transpose(1, 2)

    def pictures(self, patches: Tensor) -> Tensor:
        """[B, N, P] -> [B, C, H, W]."""
        config = self.config
        return F.fold(patches.transpose(1, 2), (config.image_size,) * 2, config.patch_size, stride=config.patch_size)


class PatchwiseNetwork(Unadapted):
    """An `ExpandingNetwork` over a MaskedAutoregressive: pixels instead of latents."""

    noise = NoiseProcess()
    signature: tuple[str, ...] = ("velocity(x,t|known)",)
    guidance_range: tuple[float, float] | None = None
    guidance_input: GuidanceInput = "no"
    scorers: tuple[str, ...] = ()
    decodes = False
    reuses = False
    own_guidance = False
    run_by = "torch"

    def __init__(self, network: MaskedAutoregressive) -> None:
        config = network.config
        self.network = network
        self.sizes = SizeRule.only(config.image_size, config.image_size)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.default_procedure: Mapping[str, Any] = {
            "name": "masked_autoregressive", "iterations": config.iterations, "steps": config.steps, "guidance": 1.0,
        }  # fmt: skip

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return self.network.config.channels, height, width

    def tokens(self, width: int, height: int) -> int:
        return self.network.config.side**2

    def encode(self, texts: Sequence[str], negative: bool = False) -> list[Condition]:
        return [Condition({"text": self.network.text(text)}) for text in texts]

    def expand(
        self, latents: Tensor, known: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]], conditions: Sequence[Condition]
    ) -> list[Condition]:
        texts = torch.stack([condition.tensors["text"] for condition in conditions])
        patches = self.network.patches(latents).to(texts.dtype)
        z = self.network(patches, self._flags(known, latents.device), texts)
        places = [torch.tensor(list(tokens), device=latents.device) for tokens in chosen]
        return [Condition({"z": z[i, place], "place": place}) for i, place in enumerate(places)]

    def covered(self, tokens: Sequence[Sequence[int]], latents: Tensor) -> Tensor:
        flags = self._flags(tokens, latents.device).float()[..., None]
        patches = flags.expand(-1, -1, self.network.config.patch_elements)
        return self.network.pictures(patches)[:, :1] > 0.0

    def evaluate(
        self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Sequence[Condition], adapters: Sequence[Adapters]
    ) -> Tensor:
        """The velocity of the chosen patches, 0 at others: those of all rows go through the denoiser together."""
        place = [condition.tensors["place"] for condition in conditions]
        counts = torch.tensor([len(one) for one in place], device=x.device)
        row, column = torch.arange(len(x), device=x.device).repeat_interleave(counts), torch.cat(place)
        patches = self.network.patches(x)
        z = torch.cat([condition.tensors["z"] for condition in conditions])
        velocity = torch.zeros_like(patches)
        velocity[row, column] = self.network.denoiser(patches[row, column].to(z.dtype), t[row].to(z.dtype), z).float()
        return self.network.pictures(velocity)

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        return classifier_free(conditional, unconditional, scale)

    def reusing(self, rows: Sequence[Reuse | None]) -> AbstractContextManager[None]:
        return nullcontext()

    def decode(self, latents: Tensor) -> Tensor:
        channels = latents.expand(-1, 3, -1, -1) if latents.shape[1] == 1 else latents
        return ((channels.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)

    def embed(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError("a picture of tokens starts from noise")  # validation refuses a given one

    def _flags(self, tokens: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """bool [R, N], true at these tokens."""
        flags = torch.zeros(len(tokens), self.network.config.side**2, dtype=torch.bool)
        for row, some in enumerate(tokens):
            flags[row, list(some)] = True
        return flags.to(device)
