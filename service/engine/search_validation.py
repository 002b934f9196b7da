"""What a search relies on is checked here, before a request crosses to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from service.engine.messages import ModelCard
from service.engine.validation import InvalidField, explained, makes_tokens, table_of
from service.procedures.search import METHODS, Particles, Search, resampling_rows


def checked_search(
    card: ModelCard, given: Mapping[str, Any], procedure: str, parameters: Mapping[str, Any], outputs: int
) -> Search:  # fmt: skip
    """Raises InvalidField when the method is unknown, a parameter is unknown or out of range, the model has no such scorer, fewer
    latents than outputs are asked for, or a sampler that draws no noise leaves nothing to resample for."""
    if makes_tokens(procedure):
        raise InvalidField("search", f"a search refines whole latents, and {procedure} makes a picture token by token")
    method = given.get("method")
    kind = METHODS.get(method) if isinstance(method, str) else None
    if kind is None:
        raise InvalidField("search.method", f"method must be one of {', '.join(METHODS)}, not {method!r:.80}")
    try:
        search = msgspec.convert(dict(given), kind, strict=True)
    except msgspec.ValidationError as error:
        hint = f"; {card.name} has: {', '.join(card.scorers)}" if "scorer" not in given else ""
        mistake = explained(error, given, kind, "search")
        raise InvalidField(mistake.param, f"{mistake}{hint}") from None
    if search.scorer not in card.scorers:
        raise InvalidField(
            "search.scorer", f"{card.name} has no scorer {search.scorer!r:.80}; it has: {', '.join(card.scorers)}"
        )  # fmt: skip
    if search.count < outputs:
        raise InvalidField(
            f"search.{search.counted}", f"{search.counted} {search.count} cannot give the best {outputs}, as n asks for"
        )  # fmt: skip
    if isinstance(search, Particles) and not _resampled(card, procedure, parameters, search.every):
        able = [name for name in card.procedures if name != procedure and _resampled(card, name, {}, search.every)]
        raise InvalidField(
            "search.method",
            f"particles are copied where the sampler draws fresh noise afterwards, and {procedure} with these parameters draws "
            f"none{f' behind evaluation {search.every}' if search.every > 1 else ''}: copies would end as one picture. Give it "
            f"noise (eta, gamma or churn, where it has them) or more steps{'; or take ' + ', '.join(able) if able else ''}",
        )
    return search


def _resampled(card: ModelCard, procedure: str, parameters: Mapping[str, Any], every: int) -> bool:
    table = table_of(card, procedure, parameters)
    return table is not None and bool(resampling_rows(table.d, every))
