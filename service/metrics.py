"""Every Prometheus metric of the service, in one registry of the front end's process.

The engine reports its forwards and gauges over the wire (`Tick`, `Gauges`), so counters outlive an engine that restarts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service import __version__
from service.engine.messages import ModelCard, ProcedureCard, Usage
from service.engine.reports import Gauges, Tick

SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

AXES = ("expand", "refine", "encode", "decode", "score")
KINDS = ("prompt", "cached", "generated", "drafted", "accepted", "revised")
DEADLINE_CHOICES = ("full", "cheaper", "shortened")
GOOD_ENDS = ("stop", "length", "completed", "cancelled")
REFUSALS = ("invalid", "unauthorised", "queue_full", "deadline", "unavailable", "error")
"""What becomes of a request that fails: `invalid` and `unauthorised` are the client's doing, `error` is the service's."""


def outcome_of(status: int) -> str:
    """The refusal that an HTTP status stands for."""
    known = {401: "unauthorised", 429: "queue_full", 503: "unavailable", 504: "deadline"}
    return known.get(status, "error" if status >= 500 else "invalid")


def effort(usage: Usage, ran: Mapping[str, Any]) -> str:
    """What a deadline left of a picture's plan: `full`; a `cheaper` one before its first evaluation, or fewer of the same jumps;
    `shortened` on the way."""
    if "stopped_after" in ran:
        return "shortened"
    return "full" if usage.nfe == usage.planned_nfe else "cheaper"


class Metrics:
    """Labels are models, procedures, axes, outcomes and kinds: never an id, never free text. `behind` is a model too, the one
    that others wait for."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        both = ["model", "procedure"]
        self.requests = Counter("stride_requests", "Requests ended, by outcome", [*both, "outcome"], registry=r)
        self.running = Gauge("stride_requests_running", "Requests that hold memory", ["model"], registry=r)
        self.waiting = Gauge("stride_requests_waiting", "Requests in the queue", ["model"], registry=r)
        self.queue = Histogram("stride_queue_seconds", "Wait before the first forward", both, buckets=SECONDS, registry=r)
        self.first_output = Histogram(
            "stride_time_to_first_output_seconds", "Arrival to first token or picture", both, buckets=SECONDS, registry=r
        )
        self.inter_token = Histogram(
            "stride_inter_token_seconds", "Between committed tokens of a request", ["model"], buckets=SECONDS, registry=r
        )
        self.request = Histogram("stride_request_seconds", "Arrival to end", both, buckets=SECONDS, registry=r)
        moves = "Rows of forwards; those of encode, decode and score too"
        self.moves = Counter("stride_moves", moves, ["model", "axis"], registry=r)
        self.forward = Histogram("stride_forward_seconds", "One forward", ["model"], buckets=SECONDS, registry=r)
        self.batch_rows = Histogram("stride_batch_rows", "Rows in a forward", ["model"], buckets=SIZES, registry=r)
        self.batch_tokens = Histogram("stride_batch_tokens", "Tokens in a forward", ["model"], buckets=SIZES, registry=r)
        self.tokens = Counter("stride_tokens", "Tokens, by kind", ["model", "kind"], registry=r)
        self.refine_steps = Counter("stride_refine_steps", "Refinement moves", ["model"], registry=r)
        self.images = Counter("stride_images", "Pictures finished", both, registry=r)
        self.kv_blocks = Gauge("stride_kv_blocks", "Blocks of the paged cache", ["model", "state"], registry=r)
        self.preemptions = Counter("stride_preemptions", "Requests set back for memory", ["model"], registry=r)
        self.deadlines_missed = Counter("stride_deadlines_missed", "Deadlines passed in the queue", ["model"], registry=r)
        self.scheduler = Histogram(
            "stride_scheduler_seconds", "Host time around a forward", ["model"], buckets=(1e-5, 5e-5, 1e-4, *SECONDS), registry=r
        )
        self.busy = Gauge("stride_device_busy_ratio", "Share of time spent in forwards", registry=r)
        self.engine_up = Gauge("stride_engine_up", "1 while the engine answers", registry=r)
        self.engine_restarts = Counter("stride_engine_restarts", "Times the engine was started again", registry=r)
        self.limit = Gauge("stride_requests_limit", "Requests that may be queued or running, before 429", registry=r)
        self.refusals = Counter("stride_refusals", "Answers below /v1 with an error status", ["outcome"], registry=r)
        self.procedure_info = Gauge(
            "stride_procedure_info", "1 for what a model can run; axis is expand, refine or both", [*both, "axis"], registry=r
        )
        self.fill = Histogram(
            "stride_batch_fill_ratio", "Share of a forward's room that was taken", ["model"], buckets=SHARES, registry=r
        )
        waited = "Seconds of forwards (of behind) that left requests (of model) standing, times the requests"
        self.waited = Counter("stride_waited_seconds", waited, ["model", "behind"], registry=r)
        self.request_forwards = Counter("stride_request_forwards", "Forwards of texts that ended", both, registry=r)
        self.request_tokens = Counter("stride_request_tokens", "Output tokens of texts that ended", both, registry=r)
        self.nfe = Histogram("stride_nfe", "Network evaluations of a picture, or of a search", both, buckets=SIZES, registry=r)
        self.deadlines = Counter("stride_deadlines", "Outputs asked for with a deadline", ["model"], registry=r)
        self.deadline_choices = Counter(
            "stride_deadline_choices", "Pictures whose deadline chose, by what it left", [*both, "outcome"], registry=r
        )
        self.deadline_evaluations = Counter(
            "stride_deadline_evaluations", "Evaluations of those, planned without it and made", ["model", "outcome"], registry=r
        )
        info = Gauge("stride_build_info", "Version", ["version"], registry=r)
        info.labels(__version__).set(1)
        for outcome in REFUSALS:
            self.refusals.labels(outcome)
        self._counted: defaultdict[tuple[Counter, str], int] = defaultdict(int)
        self._restarts = 0
        self._models: dict[str, str] = {}

    def served(self, models: Sequence[ModelCard], procedures: Sequence[ProcedureCard]) -> None:
        """An engine has loaded these, and counts from 0. Their counters stand at 0 or where they were from now on: one that
        appears with its first event is not seen to rise."""
        self._counted.clear()
        axes = {each.name: each.axes[0] if len(each.axes) == 1 else "both" for each in procedures}
        self._models = {card.name: card.kind for card in models}
        for card in models:
            model = card.name
            for procedure in card.procedures:
                self.procedure_info.labels(model, procedure, axes[procedure]).set(1)
                for outcome in (*GOOD_ENDS, *REFUSALS):
                    self.requests.labels(model, procedure, outcome)
                for counter in (self.request_forwards, self.request_tokens) if card.kind == "text" else (self.images,):
                    counter.labels(model, procedure)
                for outcome in DEADLINE_CHOICES if card.kind == "image" else ():
                    self.deadline_choices.labels(model, procedure, outcome)
            for axis in AXES:
                self.moves.labels(model, axis)
            for kind in KINDS if card.kind == "text" else ():
                self.tokens.labels(model, kind)
            for counter in (self.deadlines, self.deadlines_missed, self.preemptions, self.refine_steps):
                counter.labels(model)
            for outcome in ("planned", "made") if card.kind == "image" else ():
                self.deadline_evaluations.labels(model, outcome)
            for other in models:
                self.waited.labels(model, other.name)

    def observe(self, message: Tick | Gauges) -> None:
        """Take in what the engine reports."""
        if isinstance(message, Tick):
            self._observe_tick(message)
        else:
            self._observe_gauges(message)

    def _observe_tick(self, tick: Tick) -> None:
        model = tick.model
        for axis in AXES:
            self.moves.labels(model, axis).inc(getattr(tick, f"{axis}_moves"))
        self.forward.labels(model).observe(tick.forward_seconds)
        self.scheduler.labels(model).observe(tick.scheduler_seconds)
        self.batch_rows.labels(model).observe(tick.rows)
        self.fill.labels(model).observe(tick.fill)
        for waiting, count in tick.held.items():
            self.waited.labels(waiting, model).inc(count * tick.forward_seconds)
        self.refine_steps.labels(model).inc(tick.refine_steps)
        if tick.tokens:
            self.batch_tokens.labels(model).observe(tick.tokens)
            self.tokens.labels(model, "prompt").inc(tick.prompt_tokens)
            self.tokens.labels(model, "cached").inc(tick.cached_tokens)
            self.tokens.labels(model, "revised").inc(tick.revised_tokens)
            self.tokens.labels(model, "drafted").inc(tick.drafted_tokens)
            self.tokens.labels(model, "accepted").inc(tick.accepted_tokens)

    def _observe_gauges(self, gauges: Gauges) -> None:
        for model, count in gauges.waiting.items():
            self.waiting.labels(model).set(count)
        for model, count in gauges.running.items():
            self.running.labels(model).set(count)
        for model, counts in gauges.kv_blocks.items():
            for state, count in zip(("used", "cached", "free"), counts, strict=True):
                self.kv_blocks.labels(model, state).set(count)
        for counter, counts_now in ((self.deadlines_missed, gauges.deadlines_missed), (self.preemptions, gauges.preemptions)):
            for model, count in counts_now.items():
                counter.labels(model).inc(max(0, count - self._counted[counter, model]))
                self._counted[counter, model] = count
        self.busy.set(gauges.busy_ratio)

    def missed(self, model: str) -> None:
        """A deadline passed before the request could be queued."""
        self.hurried(model, 1)
        self.deadlines_missed.labels(model).inc()

    def hurried(self, model: str, count: int) -> None:
        """So many outputs were asked for with a deadline."""
        self.deadlines.labels(model).inc(count)

    def refused(self, status: int) -> None:
        """An answer with an error status; a client that left sees none."""
        if status != 499:
            self.refusals.labels(outcome_of(status)).inc()

    def engine(self, up: bool, restarts: int, limit: int) -> None:
        """How the engine is, and how many requests it takes, read when the metrics are."""
        self.engine_up.set(up)
        self.engine_restarts.inc(restarts - self._restarts)
        self._restarts = restarts
        self.limit.set(limit)
        if not up:
            self._forget()

    def _forget(self) -> None:
        """An engine that is away holds nothing, whatever it said last."""
        self.busy.set(0)
        for model, kind in self._models.items():
            self.running.labels(model).set(0)
            self.waiting.labels(model).set(0)
            if kind == "text":
                self.kv_blocks.labels(model, "used").set(0)

    def committed(self, model: str, count: int, gap: float | None) -> None:
        """`count` tokens came together, `gap` seconds after the ones before them."""
        self.tokens.labels(model, "generated").inc(count)
        if gap is not None:
            for _ in range(count):
                self.inter_token.labels(model).observe(gap / count)

    def ended(
        self, model: str, procedure: str, outcome: str, usage: Usage | None, pictures: int = 0, ran: Mapping[str, Any] = {}
    ) -> None:  # fmt: skip
        """A request's end: outcome is stop, length, completed, cancelled or a refusal. `pictures` came of it, made by what `ran`
        where a deadline chose that."""
        self.requests.labels(model, procedure, outcome).inc()
        if usage is None:
            return
        self.queue.labels(model, procedure).observe(usage.queue_seconds)
        self.request.labels(model, procedure).observe(usage.total_seconds)
        if usage.first_output_seconds is not None:
            self.first_output.labels(model, procedure).observe(usage.first_output_seconds)
        self.images.labels(model, procedure).inc(pictures)
        if usage.forwards and usage.generated_tokens is not None:
            self.request_forwards.labels(model, procedure).inc(usage.forwards)
            self.request_tokens.labels(model, procedure).inc(usage.generated_tokens)
        if outcome == "completed" and usage.nfe is not None:
            self._made(model, procedure, usage.nfe, usage, ran)

    def _made(self, model: str, procedure: str, nfe: int, usage: Usage, ran: Mapping[str, Any]) -> None:
        procedure = ran.get("name", procedure)
        self.nfe.labels(model, procedure).observe(nfe)
        if usage.planned_nfe is not None:
            self.deadline_choices.labels(model, procedure, effort(usage, ran)).inc()
            self.deadline_evaluations.labels(model, "planned").inc(usage.planned_nfe)
            self.deadline_evaluations.labels(model, "made").inc(nfe)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
