"""Class-conditional models as the engine sees them: prompts are classes, pictures are those of diffusers' pipeline, and the
published flows run from noise to data whatever direction their own time has."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.class_conditional import ClassConditional
from service.models.class_conditional_folder import load_class_conditional, load_dit_pipeline
from service.models.class_labels import ClassLabels
from service.models.dit import DiT
from service.models.errors import ModelError
from service.models.reuse import Reuse
from tests.dit_checkpoints import diffusers_dit, small_dit, write_dit
from tests.pipeline_checkpoints.parts import autoencoder
from tests.pipelines import refine, table_for

CPU, FLOAT = torch.device("cpu"), torch.float32
SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
NAMES = {"0": "tench, Tinca tinca", "3": "crane", "5": "crane, bird", "9": "umbrella"}


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_pipeline(folder: Path, scheduler: str = "DDIMScheduler", channels: int = 4) -> Path:
    """diffusers' folder, whose class names its own `save_pretrained` leaves out."""
    import diffusers

    chosen = getattr(diffusers, scheduler)(**({"clip_sample": False} if scheduler == "DDIMScheduler" else {}))
    network = diffusers_dit(num_embeds_ada_norm=1000)
    vae = autoencoder(channels)
    vae.register_to_config(shift_factor=None)  # the pipeline takes no notice of one
    diffusers.DiTPipeline(network, vae, chosen).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": NAMES}))
    return folder


def ours(folder: Path, network: DiT, vae: bool = True) -> ClassConditional:
    write_dit(folder, network)
    if vae:
        autoencoder(network.config.channels).save_pretrained(folder / "vae")
    return load_class_conditional("small", folder, network.config.to_json(), FLOAT, CPU)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_is_that_of_diffusers_pipeline(tmp_path: Path, scheduler: str) -> None:
    from diffusers import DiTPipeline

    network = load_dit_pipeline("small", write_pipeline(tmp_path, scheduler), FLOAT, CPU)
    pipeline = DiTPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        [0, 9], guidance_scale=3.0, num_inference_steps=5, generator=torch.Generator().manual_seed(7), output_type="pt"
    ).images
    table = table_for(network, (16, 16), steps=5, guidance=3.0)
    latents = refine(network, table, noise(2, 4, 8, 8), ["tench", "9"], ["", ""], 3.0)[-1]
    difference = network.decode(latents).permute(0, 3, 1, 2) / 255.0 - expected
    assert difference.abs().max() <= 0.5 / 255.0 + 1e-5
    assert expected.std() > 0.05, "a picture that says something"


def test_a_folder_from_before_the_network_had_a_class_of_its_own_is_read(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    for name in ("model_index.json", "transformer/config.json"):
        file = tmp_path / name
        file.write_text(file.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    assert load_dit_pipeline("small", tmp_path, FLOAT, CPU).parameters > 0


def test_what_a_pipelines_folder_says_is_what_is_run(tmp_path: Path) -> None:
    network = load_dit_pipeline("small", write_pipeline(tmp_path), FLOAT, CPU)
    assert network.default_procedure == {"name": "ddim", "steps": 50, "guidance": 4.0}
    assert network.signature == ("noise(x,t)",) and network.guidance_input == "no" and network.decodes
    assert network.sizes.default == (16, 16) and network.sizes.listed == ((16, 16),)
    assert network.latent_shape(16, 16) == (4, 8, 8) and network.tokens(16, 16) == 16


@torch.no_grad()
def test_sit_runs_from_noise_at_one_to_data_at_zero(tmp_path: Path) -> None:
    """SiT's own ODE is dx/dt = v(x, t) from t=0 (noise) to t=1 (arXiv 2401.08740, eq. 2 and 5)."""
    own = small_dit("sit")
    network = ours(tmp_path, own)
    x, label = noise(1, 4, 8, 8), torch.tensor([4])
    expected, steps = x.clone(), 8
    for i in range(steps):
        t = torch.tensor([i / steps])
        expected = expected + own(expected, t, t, torch.ones(1), label) / steps
    table = table_for(network, (16, 16), name="euler", steps=steps, guidance=1.0)
    torch.testing.assert_close(refine(network, table, x, ["4"], [""], 1.0)[-1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("data_time", [0, 1])
@torch.no_grad()
def test_meanflow_jumps_by_its_average_velocity(tmp_path: Path, data_time: int) -> None:
    """z_r = z_t - (t - r) u(z_t, r, t) (arXiv 2505.13447, eq. 12), here in the network's own time."""
    own = small_dit("meanflow", data_time=data_time)
    network = ours(tmp_path, own)
    x, label = noise(1, 4, 8, 8), torch.tensor([4])
    expected, times = x.clone(), [1.0, 0.5, 0.0] if data_time == 0 else [0.0, 0.5, 1.0]
    for t, r in pairwise(times):
        u = own(expected, torch.tensor([t]), torch.tensor([r]), torch.ones(1), label)
        expected = expected - (t - r) * u
    table = table_for(network, (16, 16))
    assert len(table) == 2 and table.takes_target
    torch.testing.assert_close(refine(network, table, x, ["4"], [""], 1.0)[-1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_network_that_takes_the_scale_is_handed_it(tmp_path: Path) -> None:
    own = small_dit("meanflow", guidance_input=True)
    network = ours(tmp_path, own)
    assert network.guidance_input == "always" and set(network.signature) == {"velocity(x,t)", "flow_map(x,t,s)"}
    x, t, s, scale = noise(2, 4, 8, 8), torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 3.0])
    out = network.evaluate(x, t, s, scale, network.encode(["4", ""]), [(), ()])
    torch.testing.assert_close(out, own(x, t, s, scale, torch.tensor([4, 10])))


@torch.no_grad()
def test_rows_that_reuse_are_what_they_are_alone(tmp_path: Path) -> None:
    network = ours(tmp_path, small_dit("sit"))
    x, conditions, ones = noise(3, 4, 8, 8), network.encode(["1", "2", ""]), torch.ones(3)
    together: list[Reuse | None] = [Reuse(1e9), None, Reuse(0.02)]
    alone = [Reuse(1e9), None, Reuse(0.02)]
    for t in (1.0, 0.995, 0.7, 0.695, 0.2):
        times = torch.full((3,), t)
        with network.reusing(together):
            out = network.evaluate(x, times, times, ones, conditions, [()] * 3)
        for i in range(3):
            with network.reusing([alone[i]]):
                own = network.evaluate(x[i : i + 1], times[:1], times[:1], ones[:1], [conditions[i]], [()])
            torch.testing.assert_close(out[i], own[0], atol=1e-5, rtol=1e-5)
    counts = [None if row is None else row.reused for row in together]
    assert counts == [None if row is None else row.reused for row in alone]
    assert counts[0] == 4 and counts[2] is not None and 0 < counts[2] < 4


def test_pixels_need_no_autoencoder(tmp_path: Path) -> None:
    network = ours(tmp_path, small_dit("meanflow", channels=3), vae=False)
    pictures = torch.randint(0, 256, (2, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert not network.decodes and network.latent_shape(8, 8) == (3, 8, 8)
    assert torch.equal(network.decode(network.embed(pictures)), pictures)


@torch.no_grad()
def test_latents_are_scaled_as_the_autoencoder_says(tmp_path: Path) -> None:
    network = ours(tmp_path, small_dit("sit"))
    vae = autoencoder(4)
    pictures = torch.randint(0, 256, (1, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    latents = vae.encode(pictures.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(network.embed(pictures), (latents - 0.06) * 1.5)
    decoded = vae.decode(latents).sample.permute(0, 2, 3, 1) * 127.5 + 127.5
    torch.testing.assert_close(network.decode((latents - 0.06) * 1.5).float(), decoded.clamp(0, 255).round(), atol=1.0, rtol=0.0)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the network takes 3 channels, and pictures are latents of 4"):
        write_dit(tmp_path, small_dit("sit", channels=3))
        autoencoder(4).save_pretrained(tmp_path / "vae")
        load_class_conditional("small", tmp_path, small_dit("sit", channels=3).config.to_json(), FLOAT, CPU)


@pytest.mark.parametrize(
    ("layout", "scheduler", "named"),
    [
        ("sit", {"_class_name": "DDIMScheduler"}, "layout sit is a flow"),
        ("dit", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "DiT predicts the noise of a diffusion, not velocity"),
        ("dit", {"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample"),
        ("dit", {"_class_name": "KarrasVeScheduler"}, "KarrasVeScheduler"),
    ],
)
def test_noise_that_is_not_the_networks_is_refused(tmp_path: Path, layout: str, scheduler: dict[str, Any], named: str) -> None:
    network = small_dit(layout, channels=3)
    write_dit(tmp_path, network)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(ModelError, match=named):
        load_class_conditional("small", tmp_path, network.config.to_json(), FLOAT, CPU)


LABELS = ClassLabels(1000, {int(number): names for number, names in NAMES.items()}, 1000)


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        ("207", 207),
        (" 0 ", 0),
        ("Tinca  TINCA", 0),
        ("tench, Tinca tinca", 0),
        ("bird", 5),
        ("umbrella", 9),
        ("", 1000),
        ("  ", 1000),
    ],
)
def test_a_prompt_is_a_class(prompt: str, number: int) -> None:
    assert LABELS.number(prompt) == number


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("1000", "from 0 to 999, not 1000"),
        ("99999999999999999999", "from 0 to 999"),
        ("-1", "must be a class"),
        ("a red circle", "a number from 0 to 999 or a name, not a red circle"),
        ("umbrela", r"did you mean umbrella\?"),
        ("crane", "is the name of classes 3 and 5: give the number"),
        ("²", "must be a class"),
    ],
)
def test_a_prompt_that_is_no_class_is_refused_in_words(prompt: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LABELS.number(prompt)


def test_a_model_without_a_class_for_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="no class for an empty prompt"):
        ClassLabels(10, {}, None).number("")
