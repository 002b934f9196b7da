"""A teacher and the student that begins with its weights: what distillation has to know of a family of networks.

Both are called (x, t, s, guidance, conditions) -> u like x, in flow notation: t = 1 is noise, t = 0 data, u the mean velocity
over [s, t]. x is [B, C, H, W], t, s and guidance [B], conditions int64 [B, T].
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor, nn

from service.models import dit, flow_transformer
from service.models.dit import DiT, DitConfig
from service.models.dit_loading import load_dit
from service.models.flow_transformer import FlowTransformer
from service.models.scene_checker import check_scenes
from service.training.caption_tokenizer import encode_captions
from service.training.checkpointing import replace_file
from service.training.precision import CPU
from service.training.scenes import draw_scenes
from service.training.shapes_sampling import ShapesModel
from service.training.trajectories import Captions

DIT_GUIDANCE = (1.0, 4.0)
DIT_BETAS = (1e-4, 0.02, 1000)
"""First and last of the betas of DiT's training (arXiv 2212.09748), and how many."""


@dataclass(frozen=True)
class DistillationPair:
    """`shape` is that of x without the batch, `empty` int64 [1] the condition that says nothing, `guidance_range` what the
    student learns. `conditions(seed, count)` draws conditions; `right(seed, pictures)`, where something can say so, which
    pictures show the conditions that were drawn with this seed; `write(folder, weights)` leaves the student, with these
    weights by its own parameters' names, as a folder that is served."""

    teacher: nn.Module
    student: nn.Module
    shape: tuple[int, int, int]
    condition_tokens: int
    empty: Tensor
    guidance_range: tuple[float, float]
    conditions: Callable[[tuple[int, ...], int], Captions]
    write: Callable[[Path, Mapping[str, Tensor]], None]
    right: Callable[[tuple[int, ...], Tensor], list[bool]] | None = None


def read_pair(folder: Path, guidance: tuple[float, float] | None, device: torch.device = CPU) -> DistillationPair:
    """The model in `folder` as teacher, and a flow map with the guidance scale as an input as its student, both on `device`.
    Without a range of `guidance` it is the teacher's.

    Raises FileNotFoundError, or ValueError for a network that has no velocity, or a range that cannot be learnt.
    """
    json_ = json.loads((folder / "config.json").read_text())
    if guidance is not None and not 0.0 < guidance[0] <= guidance[1]:
        raise ValueError(f"guidance must be two positive scales, the lower one first, not {guidance}")
    match json_.get("model_type"):
        case flow_transformer.MODEL_TYPE:
            return _flow_transformer_pair(folder, guidance, device)
        case dit.MODEL_TYPE:
            return _dit_pair(folder, DitConfig.from_json(json_), guidance or DIT_GUIDANCE, device)
        case other:
            known = f"{flow_transformer.MODEL_TYPE} and {dit.MODEL_TYPE}"
            raise ValueError(f"{folder}: model_type {other!r} cannot be distilled to a flow map; {known} can")


def _flow_transformer_pair(folder: Path, guidance: tuple[float, float] | None, device: torch.device) -> DistillationPair:
    model = ShapesModel.load(folder)
    teacher, tokenizer = model.network.requires_grad_(False).to(device), model.tokenizer
    config = replace(teacher.config, guidance_range=guidance or teacher.config.guidance_range)
    student = FlowTransformer(config).to(device)
    student.load_state_dict(teacher.state_dict())

    def conditions(seed: tuple[int, ...], count: int) -> Captions:
        text = encode_captions(tokenizer, [*(scene.caption for scene in draw_scenes(seed, count).scenes), ""])
        return Captions(text[:-1], text[-1:].expand(count, -1))

    def right(seed: tuple[int, ...], pictures: Tensor) -> list[bool]:
        return [verdict.correct for verdict in check_scenes(pictures, draw_scenes(seed, len(pictures)).scenes)]

    def write(out: Path, weights: Mapping[str, Tensor]) -> None:
        _write_json(out, config.to_json())
        replace_file(out / "tokenizer.json", (folder / "tokenizer.json").read_bytes())
        replace_file(out / "model.safetensors", save({name: value.half().contiguous() for name, value in weights.items()}))

    shape = config.channels, config.image_size, config.image_size
    empty = torch.tensor([config.null_token_id], device=device)
    return DistillationPair(
        teacher, student, shape, config.max_text_tokens, empty, config.guidance_range, conditions, write, right
    )


class DitFlow(nn.Module):
    """A DiT in flow notation. One for which time 1 is data is told 1 - t, and its velocity has its sign turned."""

    def __init__(self, network: DiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Tensor) -> Tensor:
        labels = conditions[:, 0]
        if self.network.config.data_time == 1:
            return -self.network(x, 1.0 - t, 1.0 - s, guidance, labels)
        return self.network(x, t, s, guidance, labels)


class NoiseAsVelocity(nn.Module):
    """DiT's noise prediction as the velocity of the flow between the same data and noise.

    A state x = (1 - t) x0 + t eps is, scaled to unit variance, one of the diffusion at the step with the same ratio of data
    to noise, and v = eps - x0 = (eps - x) / (1 - t). Beyond the last step, which has a little data left, v is that of the
    last step.
    """

    log_ratios: Tensor

    def __init__(self, network: DiT) -> None:
        super().__init__()
        self.network = network
        first, last, count = DIT_BETAS
        products = torch.cumprod(1.0 - torch.linspace(first, last, count, dtype=torch.float64), 0)
        self.register_buffer("log_ratios", (0.5 * torch.log(products / (1.0 - products))).float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, conditions: Tensor) -> Tensor:
        lowest = float(self.log_ratios[-1])
        t = t.clamp(1e-4, 1.0 / (1.0 + math.exp(lowest)))
        step = self._step(torch.log((1.0 - t) / t))
        keep = (1.0 - t).view(-1, 1, 1, 1)
        unit = torch.sqrt(keep.square() + (1.0 - keep).square())
        noise = self.network(x / unit, step, step, guidance, conditions[:, 0])
        return (noise - x) / keep

    def _step(self, log_ratio: Tensor) -> Tensor:
        """The step, between whole ones by linear interpolation, at which log(alpha / sigma) is `log_ratio` [B]."""
        above = torch.searchsorted(-self.log_ratios, -log_ratio).clamp(1, len(self.log_ratios) - 1)
        before, after = self.log_ratios[above - 1], self.log_ratios[above]
        return (above - 1 + (before - log_ratio) / (before - after)).clamp(0, len(self.log_ratios) - 1)


def _dit_pair(folder: Path, config: DitConfig, guidance: tuple[float, float], device: torch.device) -> DistillationPair:
    if guidance != (1.0, 1.0) and not config.null_class:
        raise ValueError(f"{folder} has no class that says nothing, and so no guidance: it can only be distilled at 1 to 1")
    if config.layout == "dit" and (folder / "scheduler").exists():
        raise ValueError(f"{folder} has a noise schedule of its own; of noise predictions only DiT's can be distilled")
    network = load_dit(folder.name, folder, config, torch.float32, device)
    changes: dict[str, Any] = {"layout": "meanflow", "guidance_input": True, "guidance_range": guidance}
    if config.layout != "meanflow":
        changes["second_time"] = "span"
    if config.layout == "dit":
        changes |= {"time_scale": float(DIT_BETAS[2]), "data_time": 0}
    own = msgspec.structs.replace(config, **changes)
    student = _student(network, own).to(device)

    def conditions(seed: tuple[int, ...], count: int) -> Captions:
        generator = torch.Generator().manual_seed(hash(seed) % (1 << 63))
        return Captions(torch.randint(config.classes, (count, 1), generator=generator), empty.cpu().expand(count, 1))

    def write(out: Path, weights: Mapping[str, Tensor]) -> None:
        _write_json(out, own.to_json())
        if (folder / "vae").is_dir():
            shutil.copytree(folder / "vae", out / "vae", dirs_exist_ok=True)
        named = {name.removeprefix("network."): value.contiguous() for name, value in weights.items()}
        replace_file(out / "model.safetensors", save(named))

    empty = torch.tensor([config.classes if config.null_class else 0], device=device)
    teacher = (NoiseAsVelocity(network) if config.layout == "dit" else DitFlow(network)).to(device)
    shape = config.channels, config.input_size, config.input_size
    return DistillationPair(teacher, DitFlow(student), shape, 1, empty, guidance, conditions, write)


def _student(teacher: DiT, config: DitConfig) -> DiT:
    """A network with the teacher's weights, which at first gives the teacher's velocity whatever the target and the scale:
    what embeds them begins with zeros. Of a noise prediction the last layer begins anew, with zeros."""
    student = DiT(config)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("r_embedder.", "w_embedder.")) for name in missing)
    for name in missing:
        if ".mlp.2." in name:
            nn.init.zeros_(student.get_parameter(name))
    if teacher.config.layout == "dit":
        nn.init.zeros_(student.final_layer.linear.weight)
        nn.init.zeros_(student.final_layer.linear.bias)
    return student


def _write_json(folder: Path, content: Mapping[str, Any]) -> None:
    replace_file(folder / "config.json", (json.dumps(content, indent=2) + "\n").encode())
