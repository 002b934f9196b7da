"""What a training run changes: a network, the average of its weights, the optimiser, the number of steps taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from service.training.checkpointing import save_training_state, state_to_resume
from service.training.ema import WeightAverage
from service.training.optimizer import SplitOptimizer


class Learner:
    """One network in training. `identity` says which run it is: what must agree with the run that it resumes."""

    def __init__(
        self, network: nn.Module, optimizer: SplitOptimizer, average_decay: float, state_path: Path, identity: Mapping[str, Any]
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.average = WeightAverage(network, average_decay)
        self.step = 0
        self._state_path = state_path
        self._identity = dict(identity)

    def learn(self, loss: Tensor) -> None:
        """One step of the optimiser against the gradient of `loss`."""
        loss.backward()
        self.optimizer.step(self.step)
        self.step += 1
        self.average.update(self.network)

    def save(self, **more: Any) -> None:
        """Write the state, and `more` of the run's own."""
        save_training_state(
            self._state_path,
            {
                "identity": self._identity,
                "step": self.step,
                "weights": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                **more,
            },
        )

    def resume(self) -> dict[str, Any]:
        """Take up the saved state, and return all of it.

        Raises FileNotFoundError where there is none, ValueError where a run with another identity wrote it.
        """
        state = state_to_resume(self._state_path, self._identity)
        self.network.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return state
