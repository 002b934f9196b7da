"""What a training run changes: a network, the average of its weights, the optimiser, the number of steps taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from service.training.checkpointing import check_nothing_there, save_training_state, state_to_resume
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

    def begin(self, resume: bool) -> dict[str, Any]:
        """With `resume` take up the saved state, and return all of it; else begin anew.

        Raises FileExistsError where beginning anew would overwrite a state, FileNotFoundError where there is none to resume,
        ValueError where a run with another identity, or of another network, wrote it.
        """
        if not resume:
            check_nothing_there(self._state_path)
            return {}
        state = state_to_resume(self._state_path, self._identity)
        try:
            self.network.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(f"cannot resume {self._state_path}: it is of another network: {error}") from error
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return state
