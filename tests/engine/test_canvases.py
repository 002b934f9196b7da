"""Canvases beside token streams: whose turn it is, what a client is shown, and what is left when one ends in the middle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest

from service.engine.assembly import build_engine
from service.engine.base_request import TEXTS
from service.engine.lane import Lane, Limits
from service.engine.loop import Engine
from service.engine.messages import Finish, ModelCard, Revision, Sampling, Submit, TextWork
from service.engine.request import TextRequest
from service.engine.scheduler import Scheduler
from service.procedures.block_diffusion_parameters import Rule
from service.procedures.types import Reading, TokenRow
from service.settings import Settings
from service.workers.block_pool import BlockPool
from service.workers.types import TokenRead
from tests.checkpoints import write_decoder
from tests.engine.driving import Outputs, finish_all
from tests.engine.reading_worker import CARD, reading_engine

TEXT = ModelCard("text", "text", "", [], [], "", 0, 300, 100_000, mask_token_id=299)
RULES: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.8},
    "factor": {"factor": 1.0, "rule": "threshold"},
    "confidence": {"steps": 4},
    "margin": {"steps": 4},
    "entropy": {"steps": 4},
    "entropy_bound": {"entropy_bound": 0.4},
    "remask": {"steps": 6, "eta": 0.3},
    "uniform": {"steps": 6},
    "accepted anew": {"rule": "entropy_bound", "entropy_bound": 1.0, "steps": 4},
}
WITHOUT_MASK = ("uniform", "accepted anew")
assert {*get_args(Rule)} <= RULES.keys()


def lane_of(rows: int, tokens: int, affordable: int | None = None) -> Scheduler:
    lane = Lane(BlockPool(4096, 16), Limits(rows, tokens, 256), False)
    if affordable is not None:
        for size in (1, 4, 16):
            lane.costs[TEXTS].observe(size, 0.02 + 0.18 / affordable * size)
    return Scheduler({"text": lane})


def begin(name: str, block_length: int = 0, priority: int = 0, revisions: bool = False) -> TextRequest:
    """A canvas that takes one forward a token, or a stream."""
    procedure = "block_diffusion" if block_length else "autoregressive"
    parameters = {"block_length": block_length, "rule": "confidence", "steps": block_length} if block_length else {}
    work = TextWork([1], 400, revisions=revisions)
    return TextRequest.begin(Submit(name, "text", procedure, parameters, 0, work, 0.0, priority), work, TEXT, 16)


def forward(scheduler: Scheduler) -> set[str]:
    """Runs a batch over a network that has no doubts; who was in it with a whole move."""
    batch = scheduler.next_batch(0.0)
    assert batch is not None
    for item in batch.items:
        assert isinstance(item.request, TextRequest)
        rows = [row for row in item.rows if isinstance(row, TokenRow)]
        item.request.fold(rows, item.whole, TokenRead([Reading(1, 0.5)] * len(rows[-1].wanted)), 0.0)
        if item.request.finished:
            scheduler.remove(item.request.id)
    return {item.request.id for item in batch.items if item.whole}


@pytest.mark.parametrize("canvases", [1, 2])
@pytest.mark.parametrize(
    "rows,tokens,affordable,length,streams",
    [
        (8, 64, None, 16, 40),  # no row is ever free
        (64, 64, None, 32, 40),  # there is room for the canvas, but not behind the streams
        (64, 64, 10, 16, 32),  # it is larger than what a forward should cost
        (4, 16, None, 24, 6),  # and larger than any forward
        (64, 512, None, 16, 32),  # a short one among many
    ],
)
def test_between_two_forwards_of_a_canvas_every_stream_has_run_and_no_canvas_starves(
    rows: int, tokens: int, affordable: int | None, length: int, streams: int, canvases: int
) -> None:
    scheduler = lane_of(rows, tokens, affordable)
    everybody = {f"s{i}" for i in range(streams)}
    for name in sorted(everybody):
        scheduler.add(begin(name))
    for i in range(canvases):
        scheduler.add(begin(f"c{i}", length))
    ran = [forward(scheduler) for _ in range(300)]
    most = min(rows, affordable or tokens)
    for name in (f"c{i}" for i in range(canvases)):
        turns = [i for i, names in enumerate(ran) if name in names]
        assert len(turns) >= 300 // (2 * (streams // most + canvases) + 1)
        for one, other in pairwise(turns):
            assert other - one == 1 or everybody <= set.union(*ran[one:other]), "somebody waited for two turns of a canvas"
    # Streams wait for no more than one forward that has none of them.
    alone = [not names & everybody for names in ran]
    assert not any(one and other for one, other in pairwise(alone))


def test_a_canvas_gets_its_turn_among_streams_of_a_higher_priority_and_newcomers() -> None:
    scheduler = lane_of(8, 64)
    scheduler.add(begin("canvas", 32, priority=5))
    for i in range(8):
        scheduler.add(begin(f"s{i}", priority=-1))
    ran = []
    for number in range(60):
        scheduler.add(begin(f"new{number}", priority=4 + number % 3))
        ran.append(forward(scheduler))
        scheduler.remove(f"new{number}")
    assert sum("canvas" in names for names in ran) >= 20
    assert all({f"s{i}" for i in range(8)} & names for one, names in pairwise(ran) if not one & {"s0", "s1"})


def test_a_long_prefill_gets_a_row_among_many_streams() -> None:
    scheduler = lane_of(4, 64)
    for i in range(40):
        scheduler.add(begin(f"s{i}"))
    work = TextWork([1] * 200, 4)
    scheduler.add(TextRequest.begin(Submit("long", "text", "autoregressive", {}, 0, work, 0.0), work, TEXT, 16))
    ran = [forward(scheduler) for _ in range(400)]
    assert "long" not in scheduler.requests and all(len(names) > 1 for names in ran)


def test_a_canvas_is_shown_at_most_every_twentieth_of_a_second() -> None:
    request, shown = begin("c", 16, revisions=True), []
    for i in range(15):
        rows = request.propose()
        events = request.fold(rows, True, TokenRead([Reading(1, 0.5)] * len(rows[-1].wanted)), i * 0.02)
        shown += [(i, event.token_ids) for event in events if isinstance(event, Revision)]
    assert [i for i, _ in shown] == [0, 3, 6, 9, 12]
    assert [len(canvas) - canvas.count(None) for _, canvas in shown] == [1, 4, 7, 10, 13]


def of_rule(name: str, rule: str, length: int = 18) -> Submit:
    work = TextWork([1, 2, 3, 4, 5, 6], length)
    parameters = {"block_length": 4, "rule": rule} | RULES[rule]
    return Submit(name, "text", "block_diffusion", parameters, len(name), work, 0.0)


def reading(rule: str, blocks: int = 400) -> Engine:
    card = msgspec.structs.replace(CARD, mask_token_id=None) if rule in WITHOUT_MASK else CARD
    return reading_engine(blocks, card=card)


@pytest.mark.parametrize("rule", RULES)
def test_one_that_is_cancelled_in_the_middle_of_a_canvas_leaves_nothing_behind(rule: str) -> None:
    leaving, staying = of_rule("r", rule), of_rule("other", rule)
    alone = finish_all(reading(rule), [staying]).tokens["other"]
    canvases = 0
    for ticks in range(1, 12):
        engine, outputs = reading(rule), Outputs()
        outputs.take(engine.take(leaving))
        outputs.take(engine.take(staying))
        for _ in range(ticks):
            outputs.take(engine.tick())
        request = engine.scheduler.requests.get("r")
        canvases += isinstance(request, TextRequest) and any(token is not None for token in request.state.canvas)
        outputs.take(engine.take(Finish("r")))
        engine.scheduler.check_books()
        finish_all(engine, [], outputs)
        assert len(alone) == 18 and not outputs.failed
        assert outputs.tokens["other"] == alone and engine.gauges().kv_blocks["text"][0] == 0
        again = finish_all(engine, [msgspec.structs.replace(staying, id="again")])
        assert again.tokens["again"] == alone, "what was left of a canvas was taken for text"
    assert canvases > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_canvas_that_is_set_back_goes_on_with_the_same_tokens_by_every_rule(rule: str) -> None:
    requests = [of_rule("r" * (i + 1), rule, 30) for i in range(3)]
    alone = {request.id: finish_all(reading(rule), [request]).tokens[request.id] for request in requests}
    engine, outputs = reading(rule, 13), Outputs()
    for request in requests:
        outputs.take(engine.take(request))
    while engine.has_work:
        outputs.take(engine.tick())
        engine.scheduler.check_books()
    assert not outputs.failed and outputs.tokens == alone and engine.gauges().preemptions["text"] > 0


Tiny = Callable[..., Engine]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Engines on a small random model for block diffusion, with a mask token or, for noise that is random tokens, without."""
    folder = tmp_path_factory.mktemp("canvases")
    write_decoder(folder / "masked")
    write_decoder(folder / "noisy", mask=None)

    def engine(kind: str = "masked", kv_memory: str = "1MiB", **settings: Any) -> Engine:
        spec = f"text={folder / kind},kv_memory={kv_memory},max_model_len=128"
        return build_engine(Settings(models=[spec], threads=1, **settings))

    return engine


def drawn(name: str, parameters: dict[str, Any], count: int = 32, seed: int = 0, **sampling: Any) -> Submit:
    work = TextWork([70 + seed, *range(40, 76)], count, Sampling(**sampling), ignore_eos=True)
    return Submit(name, "text", "block_diffusion", {"block_length": 8} | parameters, seed, work, 0.0)


@pytest.mark.parametrize("rule", ["uniform", "entropy_bound"])
def test_noise_of_random_tokens_is_removed_the_same_way_alone_together_and_set_back(tiny: Tiny, rule: str) -> None:
    requests = [drawn(f"r{i}", {"rule": rule, "steps": 5}, 56, seed=i, temperature=0.5 * i) for i in range(4)]
    alone = {request.id: finish_all(tiny("noisy"), [request]).tokens[request.id] for request in requests}
    assert len({tuple(tokens) for tokens in alone.values()}) == 4
    assert finish_all(tiny("noisy"), requests).tokens == alone
    tight = tiny("noisy", "52KiB", token_budget=32)
    assert finish_all(tight, requests).tokens == alone
    assert tight.gauges().preemptions["text"] > 0


def test_every_canvas_costs_its_own_forwards_and_no_more(tiny: Tiny) -> None:
    """The prompt is computed in the forward that begins the first, and each is committed in the one that begins the next."""
    usage = finish_all(tiny(), [drawn("r", {"rule": "confidence", "steps": 2}, 32)]).done["r"].usage
    assert usage.forwards == 4 * 2 and usage.generated_tokens == 32


def test_committed_canvases_are_shared_with_whoever_goes_on_from_them(tiny: Tiny) -> None:
    engine = tiny()
    first = drawn("first", {"rule": "confidence"}, 40)
    text = [*first.work.prompt, *finish_all(engine, [first]).tokens["first"]]
    work = TextWork([*text, 65], 16, Sampling(temperature=0.0), ignore_eos=True)
    longer = Submit("longer", "text", "block_diffusion", {"block_length": 8}, 0, work, 0.0)
    outputs = finish_all(engine, [longer])
    # All but the last canvas were committed by the forward that began the next; of them, whole blocks of memory are kept.
    assert outputs.done["longer"].usage.cached_tokens == (len(text) - 8) // 16 * 16 > len(first.work.prompt)
    assert outputs.tokens["longer"] == finish_all(tiny(), [longer]).tokens["longer"]


@pytest.mark.parametrize("parameters", [{}, {"rule": "confidence"}, {"rule": "entropy_bound"}, {"rule": "remask"}])
def test_logit_bias_holds_for_every_candidate(tiny: Tiny, parameters: dict[str, Any]) -> None:
    free = finish_all(tiny(), [drawn("r", parameters, temperature=1.0)]).tokens["r"]
    banned = {token: -1e9 for token in free[::2]}
    tokens = finish_all(tiny(), [drawn("r", parameters, temperature=1.0, logit_bias=banned)]).tokens["r"]
    assert not banned.keys() & set(tokens) and len(tokens) == 32
    assert finish_all(tiny(), [drawn("r", parameters, logit_bias={77: 1e9})]).tokens["r"] == [77] * 32


@pytest.mark.parametrize("parameters", [{"rule": "confidence", "steps": 8}, {"rule": "remask"}, {}])
def test_penalties_count_what_is_committed_and_not_the_canvas(tiny: Tiny, parameters: dict[str, Any]) -> None:
    bias = {77: 10_000.0, 78: 9_000.0}
    request = drawn("r", parameters, 32, temperature=0.0, logit_bias=bias, presence_penalty=2000.0)
    assert finish_all(tiny(), [request]).tokens["r"] == [77] * 8 + [78] * 8 + [77] * 16
