"""Requests for pictures that are to be the best of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.api.preparing import check_n
from service.api.running import Job, output_seeds
from service.api.schemas import GenerateBody, ImageBody
from service.api.service_state import Service
from service.engine.messages import Choice, ImageWork
from service.engine.search_validation import checked_search
from service.engine.validation import InvalidField, makes_tokens


def start(
    service: Service, job: Job, work: ImageWork, body: GenerateBody | ImageBody, previews: Mapping[str, int],
    choices: Sequence[Choice],
) -> None:  # fmt: skip
    """Hand the engine a request for every output, with the `choices` that it has for its deadline, or one that searches for all
    of them.

    Raises InvalidField for a picture to start from where there can be none, for a search that cannot be run, and for `previews`
    (fields, and how many they ask for) of one: it has no picture to show before it has chosen.
    """
    if work.image and makes_tokens(job.procedure):
        raise InvalidField("image", f"{job.procedure} makes a picture from nothing, token by token, and takes none to start from")
    works, seeds = [work] * body.n, output_seeds(body.seed, 1, body.n)
    if body.search is not None:
        search = checked_search(job.card, body.search, job.procedure, job.parameters, body.n)
        check_n(service, search.count, f"search.{search.counted}")
        shown = next((name for name, number in previews.items() if number), None)
        if shown is not None:
            raise InvalidField(shown, f"{shown} has nothing to show: of the pictures of a search none is chosen before the end")
        works, seeds = [msgspec.structs.replace(work, search=search, outputs=body.n)], seeds[:1]
    job.start(works, seeds, body.priority, body.deadline_ms, choices)


def with_score(output: dict[str, Any], score: float | None) -> dict[str, Any]:
    """The score that a picture was chosen for, where it was."""
    return output if score is None else {**output, "score": score}
