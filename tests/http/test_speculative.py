"""Verified drafting over HTTP: the same text, what it cost, and what is refused."""

from __future__ import annotations

import json

import httpx
import openai

from tests.http.server import Server

TEXT = {"model": "shakespeare", "prompt": "to be, to be, to be, to be, to be,", "max_tokens": 60, "seed": 4, "temperature": 0.6}
DRAFTED = {"name": "speculative", "drafter": "ngram", "draft_tokens": 6, "ngram_min": 3, "adaptive": False}


def generate(server: Server, **fields: object) -> dict[str, object]:
    answer = httpx.post(server.url + "/v1/generate", json=TEXT | {"stream": False} | fields, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def counted(server: Server, kind: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    name = f'stride_tokens_total{{kind="{kind}",model="shakespeare"}}'
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def test_the_text_is_that_of_plain_decoding_and_usage_and_metrics_say_what_was_guessed(server: Server) -> None:
    before = counted(server, "drafted"), counted(server, "accepted")
    plain, drafted = generate(server), generate(server, procedure=DRAFTED)
    text = lambda answer: json.dumps(answer.get("output") or answer.get("outputs") or answer.get("text"))  # noqa: E731
    assert text(plain) == text(drafted) != "null"
    usage = drafted["usage"]
    assert isinstance(usage, dict)
    assert usage["drafted_tokens"] >= usage["accepted_tokens"] >= 0 and usage["drafted_tokens"] > 0
    assert usage["generated_tokens"] / usage["forwards"] == usage["tokens_per_forward"]
    assert counted(server, "drafted") - before[0] == usage["drafted_tokens"]
    assert counted(server, "accepted") - before[1] == usage["accepted_tokens"]


def test_openai_routes_take_the_procedure_and_stream_the_text(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)
    asked = {"model": "shakespeare", "prompt": "to be, to be, to be, to be,", "max_tokens": 50, "seed": 4, "temperature": 0.6}
    plain = client.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
    extra = {"extra_body": {"procedure": DRAFTED}}
    assert client.completions.create(**asked, **extra).choices[0].text == plain  # type: ignore[call-overload]
    chunks = client.completions.create(**asked, **extra, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain


def test_parameters_are_listed_and_wrong_ones_are_refused_by_name(server: Server) -> None:
    listed = {p["name"]: p for p in httpx.get(server.url + "/v1/procedures").json()["data"]}
    assert listed["speculative"]["models"] == ["shakespeare"] and listed["speculative"]["needs"] == ["next(tokens)"]
    assert {"drafter", "draft_tokens", "width", "ngram_min", "ngram_max"} <= set(json.dumps(listed["speculative"]).split('"'))
    for wrong, field in (
        ({"drafter": "oracle"}, "procedure.drafter"),
        ({"width": 5}, "procedure.width"),
        ({"drafter": "mask", "width": 2}, "procedure.width"),
        ({"draft_tokens": 32, "width": 2}, "procedure.width"),
        ({"draft_tokens": 0}, "procedure.draft_tokens"),
        ({"ngram_min": 5, "ngram_max": 2}, "procedure.ngram_max"),
    ):
        body = TEXT | {"procedure": {"name": "speculative", **wrong}, "stream": False}
        answer = httpx.post(server.url + "/v1/generate", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field, answer.text


def test_token_events_say_how_many_guesses_their_forward_verified(server: Server) -> None:
    procedure = {"name": "speculative", "drafter": "heads", "draft_tokens": 4, "adaptive": False}
    body = TEXT | {"ignore_eos": True, "stream": True, "procedure": procedure}
    events: list[tuple[str, dict[str, object]]] = []
    with httpx.stream("POST", server.url + "/v1/generate", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("event:"):
                events.append((line.removeprefix("event:").strip(), {}))
            elif line.startswith("data:"):
                events[-1] = (events[-1][0], json.loads(line.removeprefix("data:")))
    usage = next(data["usage"] for name, data in events if name == "done")
    forwards = [data for name, data in events if name == "token"]
    assert isinstance(usage, dict) and usage["drafted_tokens"] > 0 and len(forwards) == usage["forwards"]
    assert sum(int(str(f["drafted"])) for f in forwards) == usage["drafted_tokens"]
    assert sum(int(str(f["accepted"])) for f in forwards) == usage["accepted_tokens"]
    assert all(len(f["token_ids"]) == int(str(f["accepted"])) + 1 for f in forwards)  # type: ignore[arg-type]
    plain = httpx.post(server.url + "/v1/generate", json=TEXT | {"ignore_eos": True}, timeout=60).json()
    assert plain["outputs"][0]["token_ids"] == [token for f in forwards for token in f["token_ids"]]  # type: ignore[attr-defined]
    assert "drafted" not in json.dumps(plain["outputs"])
