"""Stable Diffusion, XL, PixArt-Σ, Sana and Sana-Sprint: whole pictures are those of diffusers' own pipelines."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from service.models.errors import ModelError
from service.models.latent_network import Adapters
from service.models.pipelines.folder import load_pipeline
from service.models.pipelines.pipeline import Pipeline
from service.models.pipelines.sana import INSTRUCTION
from service.procedures.registry import runnable
from tests.adapters import merged, random_adapter
from tests.asked_pictures import Asked, drawn, latents
from tests.few import few
from tests.pipeline_checkpoints.pixart_sigma import write_pixart_sigma
from tests.pipeline_checkpoints.sana import write_sana
from tests.pipeline_checkpoints.stable_diffusion import unet, write_stable_diffusion, write_stable_diffusion_xl

TEXTS = ("A red fox, jumping.", "two blue cats")
NO_BINS = {"use_resolution_binning": False, "clean_caption": False}


@dataclass(frozen=True)
class Family:
    """`asked` is the procedure of a request, `told` the same for diffusers' pipeline; `adapted`: layers for an adapter."""

    write: Callable[[Path], Path]
    asked: Mapping[str, Any]
    told: Mapping[str, Any]
    adapted: tuple[str, ...]
    negative: bool = True


UNET = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.1.conv1",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0",
)
TRANSFORMER = tuple(
    f"transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn1.to_q", "attn2.to_v", "attn2.to_out.0")
)
SANA = (*TRANSFORMER, "transformer_blocks.1.ff.conv_point", "time_embed.linear", "caption_projection.linear_1")
FAMILIES = {
    "xl": Family(write_stable_diffusion_xl, {"steps": 4}, {"num_inference_steps": 4, "guidance_scale": 5.0}, UNET),
    "xl_turbo": Family(
        partial(write_stable_diffusion_xl, variant="turbo"), {"steps": 3}, {"num_inference_steps": 3, "guidance_scale": 0.0},
        UNET, negative=False,
    ),
    "xl_lcm": Family(
        partial(write_stable_diffusion_xl, variant="lcm"), {"guidance": 6.5}, {"num_inference_steps": 4, "guidance_scale": 6.5},
        UNET, negative=False,
    ),
    "diffusion_1": Family(write_stable_diffusion, {"steps": 4}, {"num_inference_steps": 4, "guidance_scale": 7.5}, UNET),
    "diffusion_2": Family(
        partial(write_stable_diffusion, prediction="v_prediction"), {"steps": 4, "guidance_rescale": 0.0},
        {"num_inference_steps": 4, "guidance_scale": 7.5}, UNET,
    ),
    "diffusion_1_lcm": Family(
        partial(write_stable_diffusion, lcm=True), {"steps": 2}, {"num_inference_steps": 2, "guidance_scale": 8.5}, UNET,
        negative=False,
    ),
    "pixart_sigma": Family(
        write_pixart_sigma, {"steps": 5}, {"num_inference_steps": 5, "guidance_scale": 4.5, **NO_BINS}, TRANSFORMER
    ),
    "sana": Family(write_sana, {"steps": 5}, {"num_inference_steps": 5, "guidance_scale": 4.5, **NO_BINS}, SANA),
    "sana_sprint": Family(
        partial(write_sana, sprint=True), {}, {"num_inference_steps": 2, "guidance_scale": 4.5, **NO_BINS}, SANA, negative=False
    ),
    "sana_sprint_4": Family(
        partial(write_sana, sprint=True), {"steps": 4, "guidance": 2.0},
        {"num_inference_steps": 4, "guidance_scale": 2.0, "intermediate_timesteps": None, **NO_BINS}, SANA, negative=False,
    ),
}  # fmt: skip


@dataclass
class Written:
    """A checkpoint on disk, loaded by us and by diffusers."""

    folder: Path
    network: Pipeline
    reference: Any
    family: Family = field(repr=False)

    def pictures(self, size: tuple[int, int], negative: str, kind: str) -> Tensor:
        """diffusers' latents, or pictures as whole numbers [R, H, W, 3], each row with a generator of its own."""
        draws = [drawn(self.network, seed, size) for seed in range(len(TEXTS))]
        start = torch.stack([draw() for draw in draws])
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(TEXTS))]
        for generator, first in zip(generators, start, strict=True):
            torch.randn(1, *first.shape, generator=generator)
        told = {"negative_prompt": [negative] * len(TEXTS)} if negative else {}
        self.reference.set_progress_bar_config(disable=True)
        made = self.reference(
            list(TEXTS), latents=start, generator=generators, width=size[0], height=size[1],
            output_type="latent" if kind == "latent" else "np", **self.family.told, **told,
        ).images  # fmt: skip
        return made if kind == "latent" else (255 * torch.from_numpy(made)).round()


@pytest.fixture(scope="module")
def written_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    found: dict[str, Written] = {}

    def written(name: str) -> Written:
        if name not in found:
            folder = FAMILIES[name].write(tmp_path_factory.mktemp(name))
            found[name] = Written(folder, load(folder), diffusers.DiffusionPipeline.from_pretrained(folder), FAMILIES[name])
        return found[name]

    return written


ONE_EACH = ("xl", "xl_lcm", "diffusion_1", "pixart_sigma", "sana", "sana_sprint")


@pytest.fixture(params=few(ONE_EACH, "xl_lcm", "diffusion_1", "pixart_sigma", "sana_sprint"))
def written(request: pytest.FixtureRequest, written_of: Callable[[str], Written]) -> Written:
    """One of each kind of network."""
    return written_of(request.param)


def load(folder: Path, lora: Mapping[str, Path] | None = None) -> Pipeline:
    return load_pipeline("tiny", folder, torch.float32, torch.device("cpu"), lora or {})


def asked(written: Written, size: tuple[int, int] = (32, 32), negative: str = "", **changes: Any) -> list[Asked]:
    return [
        Asked(text, drawn(written.network, seed, size), written.family.asked, negative, size=size, **changes)
        for seed, text in enumerate(TEXTS)
    ]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() < 1e-4 * theirs.norm())


SQUARE, WIDE = ((32, 32), ""), ((64, 32), "grey. dots")
OFTEN = (
    ("xl", *SQUARE), ("xl_lcm", *WIDE), ("diffusion_1", *WIDE), ("diffusion_2", *WIDE), ("pixart_sigma", *SQUARE),
    ("sana", *WIDE), ("sana_sprint", *SQUARE),
)  # fmt: skip
"""Of those that are square the pictures are looked at too."""


@pytest.mark.parametrize("name,size,negative", few([(name, *how) for name in FAMILIES for how in (SQUARE, WIDE)], *OFTEN))
def test_pictures_are_those_of_diffusers_pipeline(
    written_of: Callable[[str], Written], name: str, size: tuple[int, int], negative: str
) -> None:
    written = written_of(name)
    negative = negative if written.family.negative else ""
    ours = torch.stack(latents(written.network, asked(written, size, negative)))
    assert close(ours, written.pictures(size, negative, "latent"))
    assert not close(ours[:1], ours[1:])
    if size == (32, 32):
        difference = written.network.decode(ours).float() - written.pictures(size, negative, "np")
        assert difference.abs().max() <= 1.0


def test_an_adapter_makes_the_picture_that_merged_weights_make(written: Written, tmp_path: Path) -> None:
    name = written.network.denoiser
    plain = getattr(written.reference, name)
    adapter = random_adapter(plain, written.family.adapted, seed=1)
    network = load(written.folder, {"ink": adapter.save(tmp_path / "ink.safetensors", f"{name}.", alphas=True)})
    assert network.adapters == ("ink",)
    ours = torch.stack(latents(network, asked(written, adapters=(("ink", 0.8),))))
    without = torch.stack(latents(network, asked(written)))
    setattr(written.reference, name, merged(plain, [(adapter, 0.8)]))
    try:
        theirs = written.pictures((32, 32), "", "latent")
    finally:
        setattr(written.reference, name, plain)
    assert close(ours, theirs)
    assert not close(without, theirs)
    assert torch.equal(without, torch.stack(latents(written.network, asked(written))))


def test_requests_of_all_kinds_share_forwards_and_get_what_each_gets_alone(written: Written, tmp_path: Path) -> None:
    """Of different samplers, steps, scales of guidance, negative texts, lengths of text, with adapters and without."""
    plain = written.network.transformer
    files = {name: tmp_path / f"{name}.safetensors" for name in ("ink", "oil")}
    for seed, file in enumerate(files.values()):
        random_adapter(plain, written.family.adapted, seed=seed).save(file, "", "diffusers")
    network = load(written.folder, files)
    names = [name for name in runnable("image", frozenset(network.signature)) if name != "heun"]
    procedures: list[dict[str, Any]] = [{"name": name, "steps": 2 + place % 3} for place, name in enumerate(names)]
    if network.guidance_input == "no":
        procedures[1]["guidance"], procedures[2]["guidance"] = 1.0, 2.5
    chosen: list[Adapters] = [(), (("ink", 0.7),), (("oil", 1.0), ("ink", -0.3)), ()]
    wishes = [
        Asked("a fox " * place, lambda: torch.empty(0), procedure, "dots" * (place % 2), chosen[place % 4])
        for place, procedure in enumerate(procedures)
    ]  # fmt: skip

    def wished(place: int) -> Asked:
        return replace(wishes[place], noise=drawn(network, place))

    together = latents(network, [wished(place) for place in range(len(wishes))])
    for place, mixed in enumerate(together):
        [alone] = latents(network, [wished(place)])
        assert close(mixed, alone), wishes[place]
        assert mixed.isfinite().all()
    assert not any(module._forward_hooks for module in plain.modules())


def test_a_given_picture_becomes_the_likeliest_latent_and_back(written: Written) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8, generator=generator)
    ours = written.network.embed(pictures)
    assert ours.shape == (2, *written.network.latent_shape(64, 32))
    vae = written.reference.vae
    encoded = vae.encode(pictures.permute(0, 3, 1, 2) / 127.5 - 1.0)
    mode = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    assert close(ours, mode * vae.config.scaling_factor)
    assert written.network.decode(ours).shape == pictures.shape


def test_bfloat16_gives_the_same_to_its_rounding(written: Written) -> None:
    exact = written.network
    rounded = load_pipeline("tiny", written.folder, torch.bfloat16, torch.device("cpu"))
    x, t = torch.stack([drawn(exact, seed)() for seed in range(2)]), torch.tensor([0.3, 1.2])
    t = t if exact.noise.kind == "trigflow" else t / 1.3 * 999

    def output(network: Pipeline) -> Tensor:
        return network.evaluate(x, t, t, torch.tensor([2.0, 5.0]), network.encode(TEXTS), [(), ()])

    with torch.inference_mode():
        ours, theirs = output(rounded), output(exact)
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_what_stands_before_a_prompt_is_what_diffusers_puts_there() -> None:
    for pipeline in (diffusers.SanaPipeline, diffusers.SanaSprintPipeline):
        parameter = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"]
        assert "\n".join(parameter.default) == INSTRUCTION


def test_a_class_that_diffusers_renamed_is_read_under_its_old_name(tmp_path: Path) -> None:
    folder = write_pixart_sigma(tmp_path)
    for file, old in (("model_index.json", '"Transformer2DModel"'), ("transformer/config.json", '"Transformer2DModel"')):
        content = (folder / file).read_text()
        (folder / file).write_text(content.replace('"PixArtTransformer2DModel"', old))
    assert type(load(folder).transformer).__name__ == "PixArtTransformer2DModel"


@pytest.mark.parametrize(
    "network,message",
    [
        (partial(unet, class_embed_type="timestep"), "unet: class_embed_type 'timestep' is not supported"),
        (partial(unet, in_channels=9), "takes 9 channels, and the VAE's latents have 4"),
        (partial(unet, addition_embed_type="text", encoder_hid_dim=32), "addition_embed_type must be None, not 'text'"),
    ],
)
def test_a_unet_that_takes_more_than_a_text_is_refused_by_name(tmp_path: Path, network: Callable[..., Any], message: str) -> None:
    folder = write_stable_diffusion(tmp_path)
    network(cross_attention_dim=32, attention_head_dim=4).save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "write,old,new,message",
    [
        (partial(write_sana, sprint=True), "SanaSprintPipeline", "SanaPipeline", "guidance_embeds True is not Sana's"),
        (write_sana, "SanaPipeline", "SanaSprintPipeline", "guidance_embeds False is not SanaSprint's"),
        (partial(write_pixart_sigma, sizes=True), "", "", "variants that take sizes and aspect ratios"),
    ],
)
def test_a_relative_that_is_another_pipeline_is_refused(
    tmp_path: Path, write: Callable[[Path], Path], old: str, new: str, message: str
) -> None:
    folder = write(tmp_path)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace(f'"{old}"', f'"{new}"'))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_latents_that_are_normed_by_channel_are_refused(tmp_path: Path) -> None:
    folder = write_stable_diffusion_xl(tmp_path)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_mean": [0.1] * 4}))
    with pytest.raises(ModelError, match="vae: latents_mean"):
        load(folder)


@pytest.mark.parametrize(
    "scheduler,size,expected",
    [
        ({}, 16, (1, 1.0)),
        ({}, 128, (50, 5.0)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 16, (50, 5.0)),
    ],
)
def test_a_scheduler_that_begins_at_noise_is_turbos_where_the_network_is(
    tmp_path: Path, scheduler: dict[str, Any], size: int, expected: tuple[int, float]
) -> None:
    folder = write_stable_diffusion_xl(tmp_path, "turbo")
    for name, changes in (("scheduler/scheduler_config.json", scheduler), ("unet/config.json", {"sample_size": size})):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    steps, guidance = expected
    assert load(folder).default_procedure.items() >= {"steps": steps, "guidance": guidance}.items()
