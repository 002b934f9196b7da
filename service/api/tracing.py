"""Spans of requests, sent to an OpenTelemetry collector by the SDK's own thread (OTLP over HTTP).

Imported only where an endpoint is configured, since the SDK is an extra of the package.
"""

from __future__ import annotations

import logging
import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.api.call import Call
from service.api.spans import Span, server_span

PATH = "/v1/traces"
HEADERS_LOGGER = "opentelemetry.trace"
EXPORT_SECONDS = 5.0
"""For one batch of spans; a collector that is away costs spans, never a request."""


class Tracing:
    """`endpoint` is the collector's address, with or without the path of traces. What else the SDK can be told (headers, sampler,
    queue, resource), it reads from its own `OTEL_*` variables."""

    def __init__(self, endpoint: str) -> None:
        # It warns, for every request, of headers that do not parse, with what is in them: clients could fill the log.
        logging.getLogger(HEADERS_LOGGER).setLevel(logging.ERROR)
        base = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(base if base.endswith(PATH) else base + PATH, timeout=EXPORT_SECONDS)
        own = Resource({"service.name": "stride", "service.version": __version__})
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("stride", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, call: Call) -> str:
        """Queues the spans of a call that is over, below the span that its headers name; returns the trace's id."""
        epoch = time.time_ns() - time.monotonic_ns()
        parent = self._propagator.extract(call.trace)
        server = self._record(server_span(call), parent, trace.SpanKind.SERVER, epoch)
        return f"{server.get_span_context().trace_id:032x}"

    def _record(self, span: Span, parent: Context, kind: trace.SpanKind, epoch: int) -> trace.Span:
        recorded = self._tracer.start_span(
            span.name, parent, kind, dict(span.attributes), start_time=epoch + round(span.began * 1e9)
        )  # fmt: skip
        for child in span.children:
            self._record(child, trace.set_span_in_context(recorded, parent), trace.SpanKind.INTERNAL, epoch)
        if span.error is not None:
            recorded.set_status(trace.StatusCode.ERROR, span.error)
        recorded.end(epoch + round(span.ended * 1e9))
        return recorded

    def close(self, seconds: float) -> None:
        """Sends what is queued, in at most so many seconds."""
        # Beside this thread: the SDK waits for its exporter, which may be trying again, for longer than that.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(seconds)
