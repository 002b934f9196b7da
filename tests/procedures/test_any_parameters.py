"""Whatever a client may ask of a sampler, on whatever noise: a table, or a ValueError that names a parameter."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from service.procedures.noise import NoiseProcess, TrainingTimes
from service.procedures.parameters import SamplerParameters
from service.procedures.registry import PROCEDURES
from tests.procedures.test_table_invariants import LATENT, PROCESSES

SAMPLERS = {name: p.parameters for name, p in PROCEDURES.items() if issubclass(p.parameters, SamplerParameters)}
NOISES = [
    *PROCESSES.values(),
    NoiseProcess(times=TrainingTimes(betas=LATENT, spacing="linspace", end_included=False, final="lowest"), prediction="noise"),
    NoiseProcess(times=TrainingTimes(betas=LATENT, offset=1, whole=False, full_range=True), prediction="noise"),
    NoiseProcess(times=TrainingTimes(betas=msgspec.structs.replace(LATENT, zero_terminal_snr=True)), prediction="v"),
    NoiseProcess(times=TrainingTimes(betas=LATENT, spacing="distilled"), prediction="noise"),
]
OWN: dict[str, list[Any]] = {
    "eta": [0.0, 0.3, 1.0], "churn": [0.0, 1.0, 1000.0], "churn_min": [0.0, 1.0], "churn_max": [0.5, 1e5],
    "noise_scale": [0.5, 1.5], "variance": ["small", "large"], "solver": ["midpoint", "heun", "bh1", "bh2"],
    "order": [1, 2, "random", "raster"],
    "gamma": [0.0, 0.5, 1.0], "restarts": [1, 20], "level": [0.01, 0.5, 0.99], "jumps": [1, 100],
    "timestep_scaling": [0.01, 10.0, 1000.0],
}  # fmt: skip


def takes(parameters: type[SamplerParameters], name: str, value: Any) -> bool:
    """Samplers have parameters of one name and other values."""
    try:
        msgspec.convert({name: value}, parameters)
    except msgspec.ValidationError:
        return False
    return True


def drawn(parameters: type[SamplerParameters], chance: random.Random) -> SamplerParameters | None:
    """Parameters at and within their bounds; None where the struct itself refuses them."""
    asked: dict[str, Any] = {"steps": chance.choice([1, 2, 3, 9, 16, 51, 1000] if chance.random() < 0.3 else [1, 4, 15])}
    if chance.random() < 0.4:
        asked["schedule"] = chance.choice(["linear", "cosine", "karras", "exponential", "beta"])
    if chance.random() < 0.3:
        asked["shift"] = chance.choice([0.1, 1.0, 20.0])
    if chance.random() < 0.3:
        scale = chance.choice([1.0, 1.5, 80.0, 999.0, 1e5])
        times = [chance.random() * scale for _ in range(chance.randrange(1, 6))]
        asked["timesteps"] = sorted(map(float, map(round, times)) if chance.random() < 0.5 else times, reverse=True)
    asked["strength"] = chance.choice([1.0, 0.5, 1e-9])
    for name, values in OWN.items():
        if name in parameters.__struct_fields__:
            asked[name] = chance.choice([value for value in values if takes(parameters, name, value)])
    try:
        return msgspec.convert(asked, parameters)
    except msgspec.ValidationError:
        return None


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sampler_has_a_table_or_says_which_parameter_is_wrong(name: str) -> None:
    chance, tables = random.Random(name), 0
    for _ in range(150):
        parameters = drawn(SAMPLERS[name], chance)
        if parameters is None:
            continue
        noise = chance.choice(NOISES)
        try:
            table = parameters.table(noise, chance.choice([0, 1024, 16384]))
        except ValueError as error:
            told = str(error)
            assert told.startswith(("`", "heun integrates")), f"{told} of {parameters} on {noise}"
            continue
        tables += 1
        assert table.s[-1] == 0.0 or table.sigma[-1] < 0.05
        assert 0.0 < max(table.start) < 1e5
    assert tables > 30


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_times_that_are_nearly_data_are_times_like_others(name: str) -> None:
    table = msgspec.convert({"timesteps": [0.5, 1e-300]}, SAMPLERS[name]).table(NoiseProcess())
    assert table.t[0] == 0.5


def test_a_last_step_that_stands_still_has_no_difference_to_weight() -> None:
    lowest = TrainingTimes(betas=LATENT, spacing="linspace", whole=False, final="lowest")
    for solver in ("midpoint", "heun"):
        asked = msgspec.convert({"steps": 20, "solver": solver}, SAMPLERS["dpmpp_2m"])
        table = asked.table(NoiseProcess(times=lowest, prediction="noise"))
        assert (table.a[-1], table.b[-1], table.c1[-1]) == (1.0, 0.0, 0.0)
