"""The values of a scheduler_config.json of diffusers, read with errors that name the class and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from service.procedures.schedules import Schedule
from service.procedures.tables import Prediction

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


class SchedulerKeys:
    """A configuration's values, with errors that name the class and the key."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name, self._config = name, config

    def get(self, key: str, default: Any) -> Any:
        return self._config.get(key, default)

    def only(self, *known: str) -> SchedulerKeys:
        """The same without keys that the class does not have."""
        return SchedulerKeys(self.name, {key: value for key, value in self._config.items() if key in known})

    def one_of(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.get(key, default)
        if value not in allowed:
            raise ValueError(f"{self.name}: {key} {value!r} is not known; known: {', '.join(allowed)}")
        return str(value)

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self.name}: {key} must be a number, not {value!r}")
        return float(value)

    def count(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{self.name}: {key} must be a whole number, not {value!r}")
        return value

    def maybe(self, key: str) -> float | None:
        return None if self.get(key, None) is None else self.number(key, 0.0)

    def refuse(self, why: str, **allowed: Any) -> None:
        """Raises ValueError where a key is neither missing, None, nor what is allowed."""
        for key, value in allowed.items():
            given = self.get(key, None)
            if given is not None and given != value:
                raise ValueError(f"{self.name}: {key} {given!r} is not supported: {why}")

    def schedule(self) -> Schedule:
        named: tuple[Schedule, ...] = ("karras", "exponential", "beta")
        return next((schedule for schedule in named if self.get(f"use_{schedule}_sigmas", False)), "linear")

    def prediction(self, *allowed: str) -> Prediction:
        return _PREDICTIONS[self.one_of("prediction_type", "epsilon", allowed or tuple(_PREDICTIONS))]
