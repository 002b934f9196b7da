"""Noise that is random tokens, for networks which were trained with it and have no mask token."""

from __future__ import annotations

from service.procedures.chance import Purpose, uniform


def random_token(seed: int, position: int, step: int, vocabulary: int) -> int:
    """What stands at a position that is not accepted, drawn anew for every step."""
    return int(uniform(seed, position, step, Purpose.NOISE) * vocabulary)


def routes(same: bool, step: int, steps: int, vocabulary: int) -> tuple[float, float, float]:
    """Probabilities that a position jumps to the token which was read there, stays, or jumps to a random token.

    The posterior q(x_s | x_t, x_0) of uniform corruption (D3PM, arXiv 2107.03006) on the schedule alpha(t) = 1 - t,
    step from 0; `same`: the token that was read is the one that stands there. diffusers' DiscreteDDIMScheduler.
    """
    before, after = step / steps, (step + 1) / steps
    survival = before / after
    clean = after * (1.0 - survival) / vocabulary + survival * after * same
    stay = survival * (1.0 - after) / vocabulary
    noise = (1.0 - survival) * (1.0 - after) / vocabulary
    total = clean + stay + noise
    return clean / total, stay / total, noise / total


def posterior_token(read: int, standing: int, seed: int, position: int, step: int, steps: int, vocabulary: int) -> int:
    """What stands at a position after this step."""
    clean, stay, _ = routes(read == standing, step, steps, vocabulary)
    lot = uniform(seed, position, step, Purpose.ROUTE)
    if lot < clean:
        return read
    return standing if lot < clean + stay else random_token(seed, position, step + 1, vocabulary)
