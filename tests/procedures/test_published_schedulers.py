"""Configurations such as well-known models are published with: the noise, the sampler, and every step as diffusers'."""

from __future__ import annotations

import json
from typing import Any

import diffusers
import pytest

from service.procedures.noise import NoiseProcess, from_scheduler_config
from tests.procedures.scheduler_agreement import assert_same_steps, table_of

LATENT = '"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, '
STABLE = LATENT + (
    '"clip_sample": false, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0, '
    '"set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "use_karras_sigmas": false'
)
SOLVER = (
    '"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", '
    '"beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995, "euler_at_final": false, "lambda_min_clipped": -Infinity, '
    '"lower_order_final": true, "num_train_timesteps": 1000, "sample_max_value": 1.0, "solver_order": 2, '
    '"solver_type": "midpoint", "steps_offset": 0, "thresholding": false, "timestep_spacing": "linspace", "trained_betas": null, '
    '"use_karras_sigmas": false, "use_lu_lambdas": false, "variance_type": null, '
)
FLOW = '"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, '
FLUX = FLOW + '"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, '

CONFIGS: dict[str, tuple[str, str, str, str]] = {
    # Model: configuration, kind of noise, prediction, sampler.
    "stable-diffusion-xl-base-1.0": (
        '"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", ' + STABLE, "vp", "noise", "euler",
    ),
    "sdxl-turbo": (
        '"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", ' + STABLE, "vp", "noise",
        "euler_ancestral",
    ),
    "LCM_Dreamshaper_v7": (
        LATENT + '"_class_name": "LCMScheduler", "clip_sample": false, "clip_sample_range": 1.0, "original_inference_steps": 50, '
        '"prediction_type": "epsilon", "rescale_betas_zero_snr": false, "set_alpha_to_one": true, "steps_offset": 0, '
        '"thresholding": false, "timestep_scaling": 10.0, "timestep_spacing": "leading", "trained_betas": null',
        "vp", "noise", "lcm",
    ),
    "DiT-XL-2-256": (
        '"_class_name": "DDIMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, '
        '"clip_sample": false, "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": true, '
        '"steps_offset": 0, "trained_betas": null',
        "vp", "noise", "ddim",
    ),
    "PixArt-Sigma-XL-2-1024-MS": (SOLVER + '"prediction_type": "epsilon"', "vp", "noise", "dpmpp_2m"),
    "Sana_1600M_1024px": (
        SOLVER + '"prediction_type": "flow_prediction", "flow_shift": 3.0, "use_flow_sigmas": true, "final_sigmas_type": "zero"',
        "flow", "velocity", "dpmpp_2m",
    ),
    "Sana_Sprint_1.6B_1024px": (
        '"_class_name": "SCMScheduler", "num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5',
        "trigflow", "v", "consistency",
    ),
    "stable-diffusion-3.5-large": (FLOW + '"shift": 3.0', "flow", "velocity", "euler"),
    "FLUX.1-schnell": (FLUX + '"shift": 1.0, "use_dynamic_shifting": false', "flow", "velocity", "euler"),
    "FLUX.1-dev": (FLUX + '"shift": 3.0, "use_dynamic_shifting": true', "flow", "velocity", "euler"),
    "Qwen-Image": (
        FLOW + '"base_image_seq_len": 256, "base_shift": 0.5, "invert_sigmas": false, "max_image_seq_len": 8192, '
        '"max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02, "stochastic_sampling": false, "use_beta_sigmas": false, '
        '"time_shift_type": "exponential", "use_dynamic_shifting": true, "use_karras_sigmas": false',
        "flow", "velocity", "euler",
    ),
    "Z-Image-Turbo": (FLOW + '"use_dynamic_shifting": false, "shift": 3.0', "flow", "velocity", "euler"),
    "playground-v2.5-1024px-aesthetic": (
        '"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "euler_at_final": false, '
        '"dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "lower_order_final": true, "rho": 7.0, '
        '"num_train_timesteps": 1000, "prediction_type": "epsilon", "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, '
        '"solver_order": 2, "solver_type": "midpoint", "thresholding": false',
        "ve", "edm", "dpmpp_2m",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", list(CONFIGS))
def test_a_published_configuration_is_read_and_sampled_as_in_diffusers(model: str) -> None:
    text, kind, prediction, name = CONFIGS[model]
    config: dict[str, Any] = json.loads("{" + text + "}")
    noise, procedure = from_scheduler_config(config)
    assert (noise.kind, noise.prediction, procedure["name"]) == (kind, prediction, name)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    steps, tokens = 4, 4096
    setting: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - 256)
        setting["mu"] = config["base_shift"] + slope * (tokens - 256)
    if kind == "trigflow":
        setting["intermediate_timesteps"] = None
    scheduler.set_timesteps(steps, **setting)
    read, table = table_of(scheduler, steps, tokens)
    assert read == noise and isinstance(noise, NoiseProcess)
    exploding = config["_class_name"].startswith("Euler")
    assert_same_steps(scheduler, table, exploding=exploding, scale=0.5 if kind == "trigflow" else 1.0)
