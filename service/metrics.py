"""Every Prometheus metric of the service, in one registry of the front end's process.

The engine reports its forwards and gauges over the wire (`Tick`, `Gauges`), so counters outlive an engine that restarts.
"""

from __future__ import annotations

from collections import defaultdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service import __version__
from service.engine.messages import Usage
from service.engine.reports import Gauges, Tick

SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """Labels are models, procedures, axes, outcomes and kinds: never an id, never free text."""

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
        self.engine_restarts = Gauge("stride_engine_restarts_total", "Times the engine was started again", registry=r)
        info = Gauge("stride_build_info", "Version", ["version"], registry=r)
        info.labels(__version__).set(1)
        self._counted: defaultdict[tuple[Counter, str], int] = defaultdict(int)

    def observe(self, message: Tick | Gauges) -> None:
        """Take in what the engine reports."""
        if isinstance(message, Tick):
            self._observe_tick(message)
        else:
            self._observe_gauges(message)

    def _observe_tick(self, tick: Tick) -> None:
        model = tick.model
        for axis in ("expand", "refine", "encode", "decode", "score"):
            self.moves.labels(model, axis).inc(getattr(tick, f"{axis}_moves"))
        self.forward.labels(model).observe(tick.forward_seconds)
        self.scheduler.labels(model).observe(tick.scheduler_seconds)
        self.batch_rows.labels(model).observe(tick.rows)
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
        self.deadlines_missed.labels(model).inc()

    def engine(self, up: bool, restarts: int) -> None:
        """How the engine is, read when the metrics are."""
        self.engine_up.set(up)
        self.engine_restarts.set(restarts)
        if not up:
            self._counted.clear()

    def committed(self, model: str, count: int, gap: float | None) -> None:
        """`count` tokens came together, `gap` seconds after the ones before them."""
        self.tokens.labels(model, "generated").inc(count)
        if gap is not None:
            for _ in range(count):
                self.inter_token.labels(model).observe(gap / count)

    def ended(self, model: str, procedure: str, outcome: str, usage: Usage | None, pictures: int) -> None:
        """A request's end: outcome is stop, length, completed, cancelled or error. `pictures` came of it."""
        self.requests.labels(model, procedure, outcome).inc()
        if usage is None:
            return
        self.queue.labels(model, procedure).observe(usage.queue_seconds)
        self.request.labels(model, procedure).observe(usage.total_seconds)
        if usage.first_output_seconds is not None:
            self.first_output.labels(model, procedure).observe(usage.first_output_seconds)
        self.images.labels(model, procedure).inc(pictures)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
