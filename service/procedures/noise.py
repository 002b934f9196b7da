"""Noise processes: what training did to data (`NoiseProcess`), also as read from a scheduler's configuration file."""

from service.procedures.angle_times import AngleTimes
from service.procedures.flow_times import FlowTimes, ResolutionShift
from service.procedures.noise_process import NoiseProcess
from service.procedures.scheduler_config import from_scheduler_config
from service.procedures.sigma_times import SigmaTimes
from service.procedures.training_times import Betas, TrainingTimes

__all__ = [
    "NoiseProcess",
    "FlowTimes",
    "ResolutionShift",
    "TrainingTimes",
    "Betas",
    "SigmaTimes",
    "AngleTimes",
    "from_scheduler_config",
]
