"""Samplers for a continuous state as tables of numbers, and the nodes of a noise schedule that they are computed from.

One row is one network evaluation and one linear update of the state:

    x' = a x + b f + c1 h1 + c2 h2 + d eps        h2' = h1        h1' = p x + q f

with f the network's output at x, h1 and h2 two history slots (zero before the first row) and eps fresh standard noise.
Everything is a Python float (float64): a table is computed once, before any tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self

Prediction = Literal["velocity", "noise", "data", "v", "edm", "edm_v"]
PREDICTIONS: tuple[Prediction, ...] = ("velocity", "noise", "data", "v", "edm", "edm_v")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a sampler table; the defaults leave the state as it is and forget the history."""

    t: float
    s: float
    a: float = 1.0
    b: float = 0.0
    c1: float = 0.0
    c2: float = 0.0
    d: float = 0.0
    p: float = 0.0
    q: float = 0.0
    x0_x: float = 0.0
    x0_f: float = 0.0
    alpha: float = 1.0
    sigma: float = 0.0
    level: float = 0.0


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """A sampler, one entry of every tuple a row.

    t: time at which the network is evaluated, in the network's own units.
    s: target time handed to the network where `takes_target` (a flow map f(x, t, s)); the time of the state after the
        row otherwise.
    a, b, c1, c2, d, p, q: coefficients of the update in the module's docstring. A row needs noise where d is not 0.
    x0_x, x0_f: the network's estimate of the data is x0 = x0_x x + x0_f f, with x the state before the row.
    alpha, sigma: the state after the row is alpha x0 + sigma eps.
    level: sigma / (alpha + sigma) of the state before the row, in [0, 1]; 1 is pure noise.
    start: alpha, sigma of the first state, alpha x0 + sigma eps with x0 a given picture; alpha is 0 where none is needed.

    Raises ValueError when the columns differ in length, are empty, or hold a number that is not finite.
    """

    t: tuple[float, ...]
    s: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    c1: tuple[float, ...]
    c2: tuple[float, ...]
    d: tuple[float, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]
    x0_x: tuple[float, ...]
    x0_f: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    level: tuple[float, ...]
    takes_target: bool = False
    start: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.t:
            raise ValueError("a sampler table has at least one row")
        for column in fields(Row):
            values = getattr(self, column.name)
            if len(values) != len(self.t):
                raise ValueError(f"column {column.name} has {len(values)} entries, column t has {len(self.t)}")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"column {column.name} holds a number that is not finite: {values}")

    @classmethod
    def from_rows(cls, rows: Iterable[Row], takes_target: bool = False, start: tuple[float, float] = (0.0, 1.0)) -> Self:
        """The table with these rows, in order."""
        rows = tuple(rows)
        columns = {column.name: tuple(getattr(row, column.name) for row in rows) for column in fields(Row)}
        return cls(**columns, takes_target=takes_target, start=start)

    def __len__(self) -> int:
        """Number of rows, which is the number of network evaluations."""
        return len(self.t)

    def coefficients(self, row: int) -> tuple[float, float, float, float, float, float, float]:
        """(a, b, c1, c2, d, p, q) of one row: the order that the update kernel takes them in."""
        return self.a[row], self.b[row], self.c1[row], self.c2[row], self.d[row], self.p[row], self.q[row]


class Node(NamedTuple):
    """A noise level: the state there is alpha x0 + sigma eps, and the network is told `time`."""

    alpha: float
    sigma: float
    time: float


@dataclass(frozen=True, slots=True)
class Grid:
    """The nodes of a noise schedule: N + 1 of them from noise to data, for N steps of a sampler.

    At a node the state is x = alpha x0 + sigma eps, and the network is told `times`. `prediction` says what the network
    returns:

    - "velocity": eps - x0 (rectified flow); "noise": eps; "data": x0;
    - "v": alpha eps - sigma x0 (Salimans and Ho, arXiv 2202.00512);
    - "edm": F of x0 = c_skip x + c_out F (Karras et al., arXiv 2206.00364, eq. 7; alpha = 1), with data of standard deviation
      `sigma_data`; where `boundary` is not 0, sigma - boundary stands for sigma in c_skip and in c_out's numerator, so that
      the estimate is x itself there (consistency models, arXiv 2303.01469, appendix C); "edm_v": the same with -F.

    `start` is that of the table. sigma / alpha must fall strictly from node to node, but for the last step, which may stand
    still; the last node is data (sigma = 0) or nearly so, and has alpha > 0.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    prediction: Prediction
    start: tuple[float, float] = (0.0, 1.0)
    sigma_data: float = 0.5
    boundary: float = 0.0

    def __post_init__(self) -> None:
        lengths = len(self.alphas), len(self.sigmas), len(self.times)
        if len(set(lengths)) != 1 or lengths[0] < 2:
            raise ValueError(f"alphas, sigmas and times need the same length of at least 2, not {lengths}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {self.prediction!r}")
        if not all(map(math.isfinite, (*self.alphas, *self.sigmas, *self.times))):
            raise ValueError("alphas, sigmas and times must be finite")
        if min(*self.alphas, *self.sigmas) < 0.0 or self.alphas[-1] == 0.0:
            raise ValueError("alphas and sigmas must not be negative, and the last node must have alpha > 0")
        for i in range(self.steps):
            # Cross-multiplied, so that alpha = 0 (pure noise) needs no case of its own.
            after, before = self.sigmas[i + 1] * self.alphas[i], self.sigmas[i] * self.alphas[i + 1]
            if after > before or (after == before and i + 1 < self.steps):
                raise ValueError(f"sigma / alpha must fall from node to node, but does not from {i} to {i + 1}")

    @classmethod
    def from_nodes(
        cls, nodes: Sequence[Node], prediction: Prediction, start: tuple[float, float] = (0.0, 1.0), **precondition: float
    ) -> Self:
        """The grid with these nodes; `precondition` may give sigma_data and boundary."""
        alphas, sigmas, times = zip(*nodes, strict=True)
        return cls(alphas, sigmas, times, prediction, start, **precondition)

    @property
    def steps(self) -> int:
        """Number of intervals N between the nodes."""
        return len(self.times) - 1

    @property
    def straight(self) -> bool:
        """Whether this is rectified flow: alpha + sigma = 1 at every node."""
        return all(abs(alpha + sigma - 1.0) < 1e-12 for alpha, sigma in zip(self.alphas, self.sigmas, strict=True))

    def node(self, index: int) -> Node:
        """The node of this index."""
        return Node(self.alphas[index], self.sigmas[index], self.times[index])

    def row(self, node: int, after: int | None = None) -> Row:
        """A row that evaluates the network at this node and leaves a state of the node `after`, the next one by default: what
        is the same for every sampler. The coefficients of the update are those of standing still."""
        after = node + 1 if after is None else after
        alpha, sigma = self.alphas[node], self.sigmas[node]
        x0_x, x0_f = self.data_from(node)
        return Row(
            t=self.times[node], s=self.times[after], x0_x=x0_x, x0_f=x0_f, alpha=self.alphas[after],
            sigma=self.sigmas[after], level=sigma / (alpha + sigma),
        )  # fmt: skip

    def data_from(self, node: int) -> tuple[float, float]:
        """(p, q) such that the estimate of the data is x0 = p x + q f, for the network's output f at this node.

        Raises ValueError for a noise prediction at alpha = 0, where the output says nothing about the data.
        """
        alpha, sigma = self.alphas[node], self.sigmas[node]
        match self.prediction:
            case "data":
                return 0.0, 1.0
            case "velocity":
                return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
            case "v":
                square = alpha * alpha + sigma * sigma
                return alpha / square, -sigma / square
            case "noise":
                if alpha == 0.0:
                    raise ValueError(f"a noise prediction does not determine the data at node {node}, where alpha is 0")
                return 1.0 / alpha, -sigma / alpha
            case "edm" | "edm_v":
                data, beyond = self.sigma_data, sigma - self.boundary
                out = beyond * data / math.hypot(sigma, data)
                return data**2 / (beyond**2 + data**2), out if self.prediction == "edm" else -out

    def noise_from(self, node: int) -> tuple[float, float]:
        """(p, q) such that the estimate of the noise is eps = p x + q f, for the network's output f at this node.

        Raises ValueError for a prediction of data at sigma = 0, where the output says nothing about the noise.
        """
        alpha, sigma = self.alphas[node], self.sigmas[node]
        match self.prediction:
            case "noise":
                return 0.0, 1.0
            case "velocity":
                return 1.0 / (alpha + sigma), alpha / (alpha + sigma)
            case "v":
                square = alpha * alpha + sigma * sigma
                return sigma / square, alpha / square
            case "data" | "edm" | "edm_v":
                if sigma == 0.0:
                    raise ValueError(f"a data prediction does not determine the noise at node {node}, where sigma is 0")
                p, q = self.data_from(node)
                return (1.0 - alpha * p) / sigma, -alpha * q / sigma


def flow_grid(steps: int, shift: float = 1.0, times: Sequence[float] | None = None) -> Grid:
    """Rectified flow: x = (1 - t) x0 + t eps, the network predicts the velocity eps - x0 and is told t.

    times: N + 1 falling times that end at 0; uniform from 1 to 0 when None. They are then shifted towards the noise by
    t <- k t / (1 + (k - 1) t) with k = `shift` (Esser et al., arXiv 2403.03206, eq. 23), which keeps 0 and 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if not (shift > 0.0 and math.isfinite(shift)):
        raise ValueError(f"shift must be positive and finite, not {shift}")
    if times is None:
        times = [(steps - i) / steps for i in range(steps + 1)]
    elif len(times) != steps + 1:
        raise ValueError(f"{steps} steps need {steps + 1} times, not {len(times)}")
    if not all(0.0 <= t <= 1.0 for t in times) or times[-1] != 0.0:
        raise ValueError(f"times must be in [0, 1], and the last node must be data, t = 0, not {list(times)}")
    shifted = tuple(shift * t / (1.0 + (shift - 1.0) * t) for t in times)
    alphas = tuple((1.0 - t) / (1.0 + (shift - 1.0) * t) for t in times)
    return Grid(alphas, shifted, shifted, "velocity")
