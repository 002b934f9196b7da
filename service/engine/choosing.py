"""Which procedures a request for a picture may be run by when it asks for a quality or names a deadline, instead of steps.

They come from what was measured of the model (`quality.json`). Where nothing was, they are the model's own default procedure
with all of its steps or a share of them: that more steps would be better than its own number is known to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from service.engine.latent_rows import latent_rows, sampler_parameters
from service.engine.messages import Choice, ModelCard
from service.engine.validation import InvalidField, check_negative, makes_tokens, procedure_parameters
from service.procedures.quality import MeasuredQuality

Quality = Literal["draft", "balanced", "best"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)

LEAST: dict[Quality, float] = {"draft": 0.5, "balanced": 0.9, "best": 1.0}
"""Share of the best measured quality that a choice must reach; the cheapest that does is taken."""
STEPS: dict[Quality, float] = {"draft": 0.25, "balanced": 0.5, "best": 1.0}
"""Share of the default's steps, where nothing was measured; with a deadline those of `HURRIED` too."""
HURRIED = (0.75, 0.375, 0.125)

EXPLICIT = ("steps", "timesteps")
"""Parameters that say how many evaluations there are: with one of them a request gets what it asks for."""


@dataclass(frozen=True)
class Decision:
    """What a request runs, with complete parameters. `choices` are what the engine may run instead to meet its deadline, best
    first, this procedure itself among them; none where the request says what it gets."""

    procedure: str
    parameters: dict[str, Any]
    choices: list[Choice]


def decide(
    card: ModelCard, procedure: Mapping[str, Any] | None, quality: Quality | None, hurried: bool, negative: bool
) -> Decision:
    """What the request says or, where that is no number of steps: the quality that it asks for, `best` where it is only
    `hurried` by a deadline, and with one everything that is cheaper.

    Pictures that are made token by token are not hurried: their deadline is for the queue alone.

    procedure: what the request says of it; its name and parameters hold for every choice. negative: whether there is a
    negative prompt, which not every procedure can take.
    Raises InvalidField for a quality beside explicit steps, for a negative prompt that would have no effect, and as
    `procedure_parameters` does.
    """
    if makes_tokens((procedure or {}).get("name", card.default_procedure)):
        hurried = False
    choices = _choices(card, procedure, quality, hurried, negative)
    if choices:
        return Decision(choices[0].procedure, choices[0].parameters, choices if hurried else [])
    name, parameters = procedure_parameters(card, procedure)
    if negative:
        check_negative(card, name, parameters)
    return Decision(name, parameters, [])


def _choices(
    card: ModelCard, procedure: Mapping[str, Any] | None, quality: Quality | None, hurried: bool, negative: bool
) -> list[Choice]:
    """Best first; empty for a request that says itself what it gets."""
    given = dict(procedure or {})
    explicit = next((name for name in EXPLICIT if given.get(name) is not None), None)
    if quality is not None and explicit is not None:
        raise InvalidField("quality", f"quality {quality} chooses the number of steps, and the request has {explicit} of its own")
    if explicit is not None or (quality is None and not hurried):
        return []
    name = given.pop("name", None)
    measured = [] if card.quality is None else card.quality.runnable([name] if isinstance(name, str) else card.procedures)
    ladder = _measured(card, measured, given, negative) if measured else _scaled(card, name, given, negative, hurried)
    least = (LEAST if measured else STEPS)[quality or "best"]
    # Of the cheapest that is good enough; the best of all always is.
    top = next(i for i, (_, good) in enumerate(ladder) if good >= least * ladder[-1][1])
    found = [choice for choice, _ in reversed(ladder[: top + 1])]
    return found if hurried else found[:1]


def _measured(
    card: ModelCard, rows: Sequence[MeasuredQuality], given: dict[str, Any], negative: bool
) -> list[tuple[Choice, float]]:
    """Choices with their measured quality, each dearer and better than the one before."""
    made = [(row.choice, good) for row, good in _goodness(rows)]
    every = _valid(card, [((name, {**own, **given}), good) for (name, own), good in made], negative)
    ladder: list[tuple[Choice, float]] = []
    for choice, good in sorted(every, key=lambda one: (one[0].nfe, -one[1])):
        if not ladder or good > ladder[-1][1]:
            ladder.append((choice, good))
    return ladder


def _goodness(rows: Sequence[MeasuredQuality]) -> list[tuple[MeasuredQuality, float]]:
    """How good each is, more being better: the share of pictures that are correct, else what the Fréchet distance is the inverse
    of, among rows with the most samples."""
    correct = [(row, row.correct) for row in rows if row.correct is not None]
    if correct:
        return correct
    samples = max(row.samples for row in rows)
    return [(row, 1.0 / max(row.frechet or 0.0, 1e-9)) for row in rows if row.samples == samples]


def _scaled(
    card: ModelCard, name: Any, given: dict[str, Any], negative: bool, hurried: bool
) -> list[tuple[Choice, float]]:
    """The procedure with shares of its default steps, fewest first, each with its share; no number of steps twice."""
    named = given if name is None else {"name": name, **given}
    own, whole = procedure_parameters(card, named)
    shares = sorted({*STEPS.values(), *(HURRIED if hurried else ())})
    steps = {max(1, math.ceil(share * whole["steps"])): share for share in shares}
    every = [((own, {**given, "steps": count}), share) for count, share in steps.items()]
    return sorted(_valid(card, every, negative), key=lambda one: one[1])


def _valid(
    card: ModelCard, every: Sequence[tuple[tuple[str, dict[str, Any]], float]], negative: bool
) -> list[tuple[Choice, float]]:
    """Those that the model can run with what the request says. Raises InvalidField, of the first, where it can run none."""
    found: list[tuple[Choice, float]] = []
    wrong: InvalidField | None = None
    for (name, parameters), good in every:
        try:
            found.append((_choice(card, name, parameters, negative), good))
        except InvalidField as error:
            wrong = wrong or error
    if not found and wrong is not None:
        raise wrong
    return found


def _choice(card: ModelCard, name: str, parameters: dict[str, Any], negative: bool) -> Choice:
    procedure, complete = procedure_parameters(card, {"name": name, **parameters})
    if negative:
        check_negative(card, procedure, complete)
    typed = sampler_parameters(procedure, complete)
    width, height = card.sizes.default if card.sizes else (0, 0)
    rows = latent_rows(typed.table(card.noise, card.tokens(width, height)), typed, card)
    return Choice(procedure, complete, len(rows), sum(row.evaluations for row in rows))
