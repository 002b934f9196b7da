"""Remasking diffusion: what is set may be masked again, so that an early mistake can be mended.

ReMDM, arXiv 2503.00307, with the capped schedule ("ReMDM-cap"), on the linear schedule alpha(t) = 1 - t: the
paper's best one where steps are few. From time t to s < t, with sigma = min(eta, (1 - alpha_s) / alpha_t), every set
position is masked with probability sigma, and every masked one is set with probability

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

so that after every step each position is set with probability alpha_s, whatever eta is; eta = 0 is plain
ancestral sampling (MDLM, arXiv 2406.07524). Which positions are set is by lot, not by confidence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remasking:
    """Probabilities of one step."""

    mask: float
    unmask: float

    @classmethod
    def of(cls, step: int, steps: int, eta: float) -> Remasking:
        """Step from 0; the last one sets whatever is masked and masks nothing."""
        before, after = step / steps, (step + 1) / steps
        sigma = min(eta, (1.0 - after) / before) if before else 0.0
        return cls(sigma, min(1.0, (after - (1.0 - sigma) * before) / (1.0 - before)))
