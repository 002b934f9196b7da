"""Qualities and deadlines instead of steps, over a socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.http.server import Server

PROMPT = {"model": "shapes", "prompt": "a large red circle above a small blue square", "seed": 5}
GENERATE, IMAGES = "/v1/generate", "/v1/images/generations"


@pytest.fixture(scope="module")
def measured(server: Server) -> list[dict[str, Any]]:
    """What /v1/models says of the quality of `shapes`."""
    return httpx.get(server.url + "/v1/models/shapes").json()["quality"]["rows"]


def cheapest(measured: list[dict[str, Any]], share: float, **of: Any) -> dict[str, Any]:
    """The row that has at least this share of the best quality for the fewest evaluations."""
    rows = [row for row in measured if row["procedure"].items() >= of.items()]
    good = [row for row in rows if row["correct"] >= share * max(each["correct"] for each in rows)]
    return min(good, key=lambda row: (row["nfe"], -row["correct"]))


@pytest.mark.parametrize("quality,word,share", [("draft", "low", 0.5), ("balanced", "standard", 0.9)])
def test_a_quality_is_the_cheapest_procedure_that_was_measured_to_have_it(
    server: Server, measured: list[dict[str, Any]], quality: str, word: str, share: float
) -> None:
    row = cheapest(measured, share)
    answer = server.post(GENERATE, PROMPT | {"quality": quality}).json()
    assert answer["procedure"].items() >= row["procedure"].items() and answer["usage"]["nfe"] == row["nfe"]
    theirs = server.post(IMAGES, PROMPT | {"quality": word}).json()
    assert theirs["quality"] == word and theirs["data"][0]["procedure"] == answer["procedure"]
    assert theirs["data"][0]["b64_json"] == answer["outputs"][0]["image"]


def test_a_named_procedure_is_kept_and_so_are_its_other_parameters(server: Server, measured: list[dict[str, Any]]) -> None:
    row = cheapest(measured, 0.9, name="flow_map")
    chosen = {"name": "flow_map", "guidance": 1.5}
    answer = server.post(GENERATE, PROMPT | {"quality": "balanced", "procedure": chosen}).json()
    assert answer["procedure"].items() >= (chosen | {"steps": row["procedure"]["steps"]}).items()
    # Of heun nothing was measured: a share of its default steps.
    answer = server.post(GENERATE, PROMPT | {"quality": "draft", "procedure": {"name": "heun", "guidance": 1}}).json()
    assert (answer["procedure"]["steps"], answer["usage"]["nfe"]) == (5, 9)


def test_auto_is_as_if_no_quality_were_given(server: Server) -> None:
    plain, auto = (server.post(IMAGES, PROMPT | extra).json()["data"] for extra in ({}, {"quality": "auto"}))
    assert plain == auto and "procedure" not in plain[0]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, PROMPT | {"quality": "best", "procedure": {"steps": 4}}),
        (GENERATE, PROMPT | {"quality": "draft", "procedure": {"name": "euler", "timesteps": [1.0, 0.5]}}),
        (GENERATE, PROMPT | {"quality": "high"}),
        (GENERATE, {"model": "shakespeare", "prompt": "O", "quality": "draft"}),
        (IMAGES, PROMPT | {"quality": "low", "num_inference_steps": 3}),
        (IMAGES, PROMPT | {"quality": "ultra"}),
    ],
)
def test_a_quality_that_cannot_be_is_refused_by_name(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "quality", answer.text


def test_a_deadline_chooses_and_the_answer_says_what(server: Server, measured: list[dict[str, Any]]) -> None:
    server.post(GENERATE, PROMPT | {"quality": "draft"})  # so that what a forward costs is known
    best = cheapest(measured, 1.0)
    answer = server.post(GENERATE, PROMPT | {"deadline_ms": 400, "n": 2}).json()
    usage = answer["usage"]
    assert usage["planned_nfe"] == 2 * best["nfe"] and 2 <= usage["nfe"] <= usage["planned_nfe"]
    assert answer["procedure"] == answer["outputs"][0]["procedure"]
    assert all(output["finish_reason"] == "completed" for output in answer["outputs"])
    named = server.post(GENERATE, PROMPT | {"deadline_ms": 60_000, "procedure": "flow_map"}).json()
    assert named["procedure"]["name"] == "flow_map"
    assert named["usage"]["nfe"] == named["usage"]["planned_nfe"] == named["procedure"]["steps"]


def test_explicit_steps_stay_whatever_the_deadline(server: Server) -> None:
    body = {"deadline_ms": 60_000, "procedure": {"name": "euler", "steps": 3}}
    answer = server.post(GENERATE, PROMPT | body).json()
    assert answer["usage"]["nfe"] == 6 and "planned_nfe" not in answer["usage"] and "procedure" not in answer["outputs"][0]


def test_a_picture_after_its_deadline_counts_as_missed(server: Server) -> None:
    before = server.metric("stride_deadlines_missed_total", model="shapes")
    answer = server.post(GENERATE, PROMPT | {"deadline_ms": 1})
    assert answer.status_code in (200, 504)  # late, or not even begun
    server.until(lambda: server.metric("stride_deadlines_missed_total", model="shapes") == before + 1)


def test_what_was_measured_is_shown_with_its_procedure(server: Server, measured: list[dict[str, Any]]) -> None:
    entries = {entry["name"]: entry for entry in httpx.get(server.url + "/v1/procedures").json()["data"]}
    for name in ("flow_map", "euler"):
        rows = [{"model": "shapes", **row} for row in measured if row["procedure"]["name"] == name]
        shown = entries[name]["measured"]
        assert rows and sorted(rows, key=lambda row: row["nfe"]) == shown
    assert entries["autoregressive"]["measured"] == []


def test_the_procedure_of_an_answer_can_be_asked_for(server: Server) -> None:
    answer = server.post(GENERATE, PROMPT | {"quality": "draft"}).json()
    again = server.post(GENERATE, PROMPT | {"procedure": answer["procedure"]}).json()
    assert again["outputs"] == answer["outputs"]
