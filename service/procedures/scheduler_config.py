"""Reads a scheduler_config.json of diffusers: the noise that the network was trained with, and the sampler that its makers chose.

Times and noise levels are those of the scheduler's own `set_timesteps`. Keys that a scheduler class does not have are not
looked at, as there; a value that changes what a step computes and that no table of ours has is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from service.procedures.angle_times import AngleTimes
from service.procedures.flow_times import FlowTimes, ResolutionShift, shifted
from service.procedures.noise_process import NoiseProcess
from service.procedures.scheduler_keys import SchedulerKeys
from service.procedures.sigma_times import SigmaTimes
from service.procedures.training_times import Betas, TrainingTimes

Found = tuple[NoiseProcess, dict[str, Any]]

_SHORT_OF_NOISE = 1.0 - 17 * 2.0**-24  # 1 - 1e-6 in single precision, where alpha is no longer 1e-6
_FP16_SMALLEST = 2.0**-24  # what the field's solvers put in the place of alpha^2 = 0, by which they divide


def from_scheduler_config(config: Mapping[str, Any]) -> Found:
    """The process, and the procedure with those of its parameters that are not defaults, as {"name": "dpmpp_2m", ...}.

    PNDM's multistep rule needs four outputs, more than a table's two history slots: dpmpp_2m stands in for it, on its times.
    Raises ValueError naming the class, or the key and the value, that is not known.
    """
    name = config.get("_class_name")
    reader = _READERS.get(name) if isinstance(name, str) else None
    if reader is None or not isinstance(name, str):
        raise ValueError(f"scheduler {name!r} is not known; known: {', '.join(_READERS)}")
    return reader(SchedulerKeys(name, config))


def _flow(keys: SchedulerKeys) -> NoiseProcess:
    keys.refuse("states run from noise to data here", invert_sigmas=False)
    keys.refuse("the size of a state does not change", scale_factors=[])
    total, shift = keys.count("num_train_timesteps", 1000), keys.number("shift", 1.0)
    resolution = _resolution(keys) if keys.get("use_dynamic_shifting", False) else None
    times = FlowTimes(
        unit=float(total), schedule=keys.schedule(), shift=shift, resolution=resolution, terminal=keys.maybe("shift_terminal"),
        end=shifted(1.0 / total, 1.0 if resolution else shift), end_included=True, shift_of_jumps=None,
    )  # fmt: skip
    return NoiseProcess(times=times)


def _resolution(keys: SchedulerKeys) -> ResolutionShift:
    return ResolutionShift(
        base=keys.number("base_shift", 0.5), largest=keys.number("max_shift", 1.15),
        base_tokens=keys.count("base_image_seq_len", 256), largest_tokens=keys.count("max_image_seq_len", 4096),
        form=keys.one_of("time_shift_type", "exponential", ("exponential", "linear")),  # type: ignore[arg-type]
    )  # fmt: skip


def _flow_euler(keys: SchedulerKeys) -> Found:
    keys.refuse("fresh noise in every step is the procedure consistency", stochastic_sampling=False)
    return _flow(keys), {"name": "euler"}


def _flow_map(keys: SchedulerKeys) -> Found:
    times = FlowTimes(unit=float(keys.count("num_train_timesteps", 1000)), shift=keys.number("shift", 1.0), shift_of_jumps=None)
    return NoiseProcess(times=times), {"name": "flow_map"}


def _betas(
    keys: SchedulerKeys, first: float = 0.0001, last: float = 0.02, schedule: str = "linear", dividing: bool = False
) -> Betas:
    trained = keys.get("trained_betas", None)
    known = ("linear", "scaled_linear", "squaredcos_cap_v2")
    zero = bool(keys.get("rescale_betas_zero_snr", False))
    return Betas(
        schedule="trained" if trained is not None else keys.one_of("beta_schedule", schedule, known),  # type: ignore[arg-type]
        count=keys.count("num_train_timesteps", 1000), first=keys.number("beta_start", first),
        last=keys.number("beta_end", last), trained=tuple(map(float, trained)) if trained is not None else (),
        zero_terminal_snr=zero, last_product=_FP16_SMALLEST if zero and dividing else 0.0,
    )  # fmt: skip


def _spacing(keys: SchedulerKeys, default: str) -> dict[str, Any]:
    spacing = keys.one_of("timestep_spacing", default, ("leading", "trailing", "linspace"))
    return {"spacing": spacing, "offset": keys.count("steps_offset", 0)}


def _no_clipping(keys: SchedulerKeys, default: bool) -> None:
    for key in ("clip_sample", "thresholding"):
        if keys.get(key, default and key == "clip_sample"):
            raise ValueError(f"{keys.name}: {key} is not supported: it cuts the data estimate off, which no linear step does")


def _ddim(keys: SchedulerKeys) -> Found:
    _no_clipping(keys, default=True)
    final = "data" if keys.get("set_alpha_to_one", True) else "lowest"
    times = TrainingTimes(betas=_betas(keys), final=final, **_spacing(keys, "leading"))  # type: ignore[arg-type]
    return NoiseProcess(times=times, prediction=keys.prediction("epsilon", "sample", "v_prediction")), {"name": "ddim"}


def _ddpm(keys: SchedulerKeys) -> Found:
    _no_clipping(keys, default=True)
    variance = keys.one_of("variance_type", "fixed_small", ("fixed_small", "fixed_large"))
    times = TrainingTimes(betas=_betas(keys), **_spacing(keys, "leading"))
    process = NoiseProcess(times=times, prediction=keys.prediction("epsilon", "sample", "v_prediction"))
    return process, {"name": "ddpm"} | ({"variance": "large"} if variance == "fixed_large" else {})


def _pndm(keys: SchedulerKeys) -> Found:
    final = "data" if keys.get("set_alpha_to_one", False) else "lowest"
    times = TrainingTimes(betas=_betas(keys), final=final, **_spacing(keys, "leading"))  # type: ignore[arg-type]
    return NoiseProcess(times=times, prediction=keys.prediction("epsilon", "v_prediction")), {"name": "dpmpp_2m"}


def _sigmas(keys: SchedulerKeys, spacing: str, first: float = 0.0001, last: float = 0.02) -> TrainingTimes:
    """Times of the schedulers that work in sigma / alpha and keep timesteps between whole ones."""
    chosen = _spacing(keys, spacing)
    return TrainingTimes(
        betas=_betas(keys, first, last, dividing=True), whole=False, schedule=keys.schedule(), **chosen,
        start="unit" if chosen["spacing"] == "leading" else "level",
    )  # fmt: skip


def _euler(keys: SchedulerKeys) -> Found:
    keys.refuse("only linear is known", interpolation_type="linear")
    keys.refuse("the network is told timesteps", timestep_type="discrete")
    times = msgspec.structs.replace(
        _sigmas(keys, "linspace"), sigma_min=keys.maybe("sigma_min"), sigma_max=keys.maybe("sigma_max"),
        final=_final(keys),
    )  # fmt: skip
    return NoiseProcess(times=times, prediction=keys.prediction("epsilon", "sample", "v_prediction")), {"name": "euler"}


def _ancestral(keys: SchedulerKeys) -> Found:
    prediction = keys.prediction("epsilon", "sample", "v_prediction")
    times = msgspec.structs.replace(_sigmas(keys, "linspace"), schedule="linear")
    return NoiseProcess(times=times, prediction=prediction), {"name": "euler_ancestral"}


def _heun(keys: SchedulerKeys) -> Found:
    _no_clipping(keys, default=False)
    times = _sigmas(keys, "linspace", 0.00085, 0.012)
    return NoiseProcess(times=times, prediction=keys.prediction("epsilon", "sample", "v_prediction")), {"name": "heun"}


def _solver_times(keys: SchedulerKeys, flow: FlowTimes) -> FlowTimes | TrainingTimes:
    """Times of the multistep solvers, of a flow or of a diffusion."""
    keys.refuse("it cuts the data estimate off, which no linear step does", thresholding=False)
    keys.refuse("known: karras, exponential, beta", use_lu_lambdas=False)
    if keys.get("use_flow_sigmas", False):
        if keys.schedule() != "linear" or _final(keys) != "data":
            raise ValueError(f"{keys.name}: use_flow_sigmas goes with no other spacing and no sigma_min at the end")
        dynamic = bool(keys.get("use_dynamic_shifting", False))
        return msgspec.structs.replace(
            flow, unit=float(keys.count("num_train_timesteps", 1000)), whole=True, shift=keys.number("flow_shift", 1.0),
            resolution=_resolution(keys) if dynamic else None, shift_of_jumps=None,
        )  # fmt: skip
    clipped = keys.get("lambda_min_clipped", None)
    lambda_min = None if clipped is None or float(clipped) == -math.inf else float(clipped)
    return TrainingTimes(
        betas=_betas(keys, dividing=True), end_included=False, schedule=keys.schedule(), full_range=True,
        lambda_min=lambda_min, final=_final(keys), **_spacing(keys, "linspace"),
    )  # fmt: skip


def _dpm_solver(keys: SchedulerKeys) -> Found:
    keys.refuse("order 2 is what two history slots hold", solver_order=2)
    keys.refuse("only the last step is of first order", lower_order_final=True)
    algorithm = keys.one_of("algorithm_type", "dpmsolver++", ("dpmsolver++", "sde-dpmsolver++"))
    solver = keys.one_of("solver_type", "midpoint", ("midpoint", "heun", "logrho", "bh1", "bh2"))
    end = 1.0 - 1.0 / keys.count("num_train_timesteps", 1000)
    times = _solver_times(keys, FlowTimes(first=end))
    procedure: dict[str, Any] = {"name": "dpmpp_2m"}
    if algorithm == "sde-dpmsolver++":
        procedure["eta"] = 1.0
    if solver == "heun":
        procedure["solver"] = "heun"
    return NoiseProcess(times=times, prediction=keys.prediction()), procedure


def _unipc(keys: SchedulerKeys) -> Found:
    keys.refuse("only the last step is of first order", lower_order_final=True)
    keys.refuse("the corrector runs in every step", disable_corrector=[])
    keys.refuse("the data are what is integrated", predict_x0=True)
    order = keys.count("solver_order", 2)
    if order not in (1, 2):
        raise ValueError(f"{keys.name}: solver_order {order} is not supported: order 2 is what two history slots hold")
    solver = keys.one_of("solver_type", "bh2", ("bh1", "bh2", "midpoint", "heun", "logrho"))
    flow = FlowTimes(
        end=1.0 / keys.count("num_train_timesteps", 1000), largest=_SHORT_OF_NOISE, terminal=keys.maybe("shift_terminal")
    )
    times = _solver_times(keys, flow)
    procedure: dict[str, Any] = {"name": "unipc"}
    if order == 1:
        procedure["order"] = 1
    if solver == "bh1":
        procedure["solver"] = "bh1"
    return NoiseProcess(times=times, prediction=keys.prediction()), procedure


def _lcm(keys: SchedulerKeys) -> Found:
    _no_clipping(keys, default=False)
    times = TrainingTimes(
        betas=_betas(keys, 0.00085, 0.012, "scaled_linear"), spacing="distilled",
        distilled=keys.count("original_inference_steps", 50),
    )  # fmt: skip
    scaling = keys.number("timestep_scaling", 10.0)
    process = NoiseProcess(times=times, prediction=keys.prediction("epsilon", "sample", "v_prediction"))
    return process, {"name": "lcm"} | ({} if scaling == 10.0 else {"timestep_scaling": scaling})


def _scm(keys: SchedulerKeys) -> Found:
    keys.one_of("prediction_type", "trigflow", ("trigflow",))
    return NoiseProcess(times=AngleTimes(), prediction="v"), {"name": "consistency", "steps": 2}


def _edm(keys: SchedulerKeys, procedure: str) -> Found:
    kind = keys.one_of("prediction_type", "epsilon", ("epsilon", "v_prediction"))
    times = SigmaTimes(
        sigma_min=keys.number("sigma_min", 0.002), sigma_max=keys.number("sigma_max", 80.0), told="log",
        sigma_data=keys.number("sigma_data", 0.5), rho=keys.number("rho", 7.0), final=_final(keys), start="unit",
        schedule=keys.one_of("sigma_schedule", "karras", ("karras", "exponential")),  # type: ignore[arg-type]
    )  # fmt: skip
    return NoiseProcess(times=times, prediction="edm" if kind == "epsilon" else "edm_v"), {"name": procedure}


def _edm_solver(keys: SchedulerKeys) -> Found:
    keys.refuse("it cuts the data estimate off, which no linear step does", thresholding=False)
    process, _ = _edm(keys, "")
    return process, _dpm_solver(keys)[1]


def _consistency(keys: SchedulerKeys) -> Found:
    if keys.get("clip_denoised", True):
        raise ValueError(f"{keys.name}: clip_denoised is not supported: it cuts the data estimate off, which no linear step does")
    keys.refuse("noise of standard deviation 1 is added", s_noise=1.0)
    low = keys.number("sigma_min", 0.002)
    times = SigmaTimes(
        sigma_min=low, sigma_max=keys.number("sigma_max", 80.0), sigma_data=keys.number("sigma_data", 0.5),
        rho=keys.number("rho", 7.0), points=keys.count("num_train_timesteps", 40), told="log", unit=1000.0, final="lowest",
    )  # fmt: skip
    return NoiseProcess(times=times, prediction="edm", boundary=low), {"name": "consistency"}


def _final(keys: SchedulerKeys) -> Any:
    return "data" if keys.one_of("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero" else "lowest"


_READERS: dict[str, Callable[[SchedulerKeys], Found]] = {
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": lambda keys: (_flow(keys.only("num_train_timesteps", "shift")), {"name": "heun"}),
    "FlowMatchLCMScheduler": lambda keys: (_flow(keys), {"name": "consistency"}),
    "FlowMapEulerDiscreteScheduler": _flow_map,
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _ancestral,
    "HeunDiscreteScheduler": _heun,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "LCMScheduler": _lcm,
    "SCMScheduler": _scm,
    "EDMEulerScheduler": lambda keys: _edm(keys, "euler"),
    "EDMDPMSolverMultistepScheduler": _edm_solver,
    "CMStochasticIterativeScheduler": _consistency,
}
