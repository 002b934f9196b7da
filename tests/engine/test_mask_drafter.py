"""The drafter `mask`: a model that knows mask tokens guesses for itself, in the forwards that verify, and changes no text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.engine.assembly import _drafters
from service.engine.cost import ForwardCost
from service.engine.messages import Failed
from service.procedures.speculative import SpeculativeParameters
from tests.engine.driving import engine_on, finish_all, image_request, text_request
from tests.engine.test_speculative import CASES, SAMPLING, WORK, pairs, replace_procedure
from tests.few import few

MASK = {"drafter": "mask", "adaptive": False}


@pytest.mark.parametrize("case", few(CASES, "greedy", "filtered", "penalised", "stops", "grammar-penalised"))
def test_the_same_text_comes_with_masks(case: str, tmp_path: Path) -> None:
    submits = pairs(5, **({"sampling": SAMPLING[case]} if case in SAMPLING else WORK[case]))
    plain = finish_all(engine_on(tmp_path), submits)
    for count in (1, 3, 6):
        masked = [replace_procedure(s, "speculative", MASK | {"draft_tokens": count}) for s in submits]
        drafted = finish_all(engine_on(tmp_path), masked)
        assert not drafted.failed and drafted.tokens == plain.tokens
        if case in SAMPLING:
            assert all((drafted.done[s.id].usage.drafted_tokens or 0) > 0 for s in submits)


def test_in_mixed_batches_and_set_back_too(tmp_path: Path) -> None:
    submits = pairs(24, sampling=SAMPLING["filtered"], max_tokens=200, prompt_length=60)
    plain = finish_all(engine_on(tmp_path), submits)
    masked = [replace_procedure(s, "speculative", MASK) if i % 3 else s for i, s in enumerate(submits)]
    long = [text_request(f"long{i}", 50 + i, prompt_length=200) for i in range(2)]
    engine = engine_on(tmp_path, token_budget=256)
    together = finish_all(engine, [*masked, *long, image_request("image", 1)])
    assert engine.scheduler.lanes["text"].preemptions > 0
    for submit in submits:
        assert together.tokens[submit.id] == plain.tokens[submit.id]


def test_models_without_canvases_have_no_such_drafter_and_too_many_guesses_are_refused() -> None:
    assert _drafters(["next(tokens)"], 3) == ["ngram"] and _drafters(["canvas(prefix, block)"], 3) == []
    with pytest.raises(ValueError, match="draft_tokens"):
        SpeculativeParameters("mask", 7)


def test_masks_fall_away_where_a_token_more_is_not_free_and_come_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submits = pairs(3, sampling=SAMPLING["greedy"], max_tokens=30)
    plain = finish_all(engine_on(tmp_path), submits)
    masked = [replace_procedure(s, "speculative", {"drafter": "mask"}) for s in submits]
    for line, some in (((0.0, 1.0), False), ((1.0, 0.001), True)):
        monkeypatch.setattr(ForwardCost, "line", lambda self, line=line: line)
        drafted = finish_all(engine_on(tmp_path), masked)
        assert drafted.tokens == plain.tokens
        for submit in submits:
            assert bool(drafted.done[submit.id].usage.drafted_tokens) == some
        assert some or max(tick.tokens for tick in drafted.ticks[-20:]) <= 3


def test_a_text_as_long_as_the_context_has_room_for_its_masks(tmp_path: Path) -> None:
    """Where memory limits the context, and not the model."""
    engine_on(tmp_path)
    file = tmp_path / "text" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 8192}))
    engine = engine_on(tmp_path)
    longest = engine.models["text"].card.max_model_len
    assert 3000 < longest < 8192
    for count in (3, 6):
        parameters = MASK | {"draft_tokens": count}
        request = text_request(f"r{count}", 5, "speculative", parameters=parameters, prompt_length=10, max_tokens=longest - 10)
        assert not any(isinstance(event, Failed) for event in engine.take(request))
        engine.abort_all()
