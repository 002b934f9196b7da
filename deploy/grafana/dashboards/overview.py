"""Is it well, and what does a client see of it?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import board
from deploy.grafana.limits import FAILED_SHARE, FIRST_OUTPUT_SECONDS, MISSED_SHARE, QUEUE_SHARE
from deploy.grafana.panels import PICTURES, TOKENS, Panels, Query, lines, number, percentiles
from deploy.grafana.promql import buckets, by_axis, of_instance, of_model, quantile, rate, ratio, total

REQUESTS = rate(of_model("stride_requests_total"))
FAILED = rate(of_model("stride_requests_total", 'outcome=~"error|unavailable"'))
WAITING = of_model("stride_requests_waiting")
LIMIT = total(of_instance("stride_requests_limit"))
GENERATED = rate(of_model("stride_tokens_total", 'kind="generated"'))
PICTURES_MADE = rate(of_model("stride_images_total"))


def dashboard() -> Dashboard:
    return board(
        "stride-overview",
        "Overview",
        "Traffic, errors, latency, what comes out, and the queue.",
        numbers(),
        {"Traffic": traffic(), "Latency": latency(), "Output and queue": output(), "Trouble": trouble()},
    )


def numbers() -> Panels:
    return [
        number(
            "Engine", "Whether every engine answers. While one is down its front end sends 503 and starts it again.", "none",
            f"min({of_instance('stride_engine_up')})", ((None, "red"), (1, "green")), {0: "down", 1: "up"},
        ),
        number("Requests", "Outputs that ended, however they did, each second.", "reqps", total(REQUESTS)),
        number(
            "Failed", "Share of outputs that ended by the service's fault: an error in it, or an engine that went away. "
            f"An alert from {FAILED_SHARE:.0%} on.", "percentunit", ratio(total(FAILED), total(REQUESTS)),
            ((None, "green"), (FAILED_SHARE, "red")),
        ),
        number(
            "Queue", "Share of the queue's room that waiting requests take; when it is full, more get 429. "
            f"An alert from {QUEUE_SHARE:.0%} on if it grows.", "percentunit",
            f"{total(WAITING)} / clamp_min({LIMIT} - {total(of_instance('stride_requests_running'))}, 1)",
            ((None, "green"), (QUEUE_SHARE, "orange"), (0.8, "red")),
        ),
        number("Tokens", "Tokens of output, of all models.", TOKENS, total(GENERATED)),
        number("Pictures", "Pictures finished, of all models.", PICTURES, total(PICTURES_MADE)),
    ]  # fmt: skip


def traffic() -> Panels:
    return [
        lines(
            "Requests by outcome", "How outputs end: stop and length are texts, completed pictures; the client of cancelled ones "
            "left. invalid is the client's doing, error and unavailable are the service's.", "reqps",
            Query(total(REQUESTS, "outcome"), "{{outcome}}"), stacked=True,
        ),
        lines(
            "Requests by procedure", "What was asked for, of outputs that ended.", "reqps",
            Query(f"{total(REQUESTS, 'model', 'procedure')} > 0", "{{model}} {{procedure}}"), stacked=True,
        ),
        lines(
            "Refused", "Answers with an error status. queue_full is 429: more load than the service takes. unavailable is "
            "503: the engine is away. invalid are the other 4xx.", "reqps",
            Query(total(rate(of_instance("stride_refusals_total")), "outcome"), "{{outcome}}"), stacked=True,
        ),
    ]  # fmt: skip


def latency() -> Panels:
    gaps = buckets("stride_inter_token_seconds")
    return [
        lines(
            "First output", "From arrival to the first token or picture, by the axis of the procedure. What is above the time "
            "on an idle service is waiting: see the queue below. The line is where the alert on p95 begins.", "s",
            *percentiles(by_axis(buckets("stride_time_to_first_output_seconds")), "model", "axis"), limit=FIRST_OUTPUT_SECONDS,
        ),
        lines(
            "Between tokens", "From one token of an output to the next; tokens that come together share their time. Large "
            "pictures on the same device show in p99.", "s",
            *percentiles(gaps, "model"), Query(quantile(0.99, gaps, "model"), "p99 {{model}}"),
        ),
        lines(
            "Whole request", "From arrival to the end of an output, by the axis of the procedure. It depends on what clients ask "
            "for: compare it with its own past.", "s",
            *percentiles(by_axis(buckets("stride_request_seconds")), "model", "axis"),
        ),
    ]  # fmt: skip


def output() -> Panels:
    tokens = rate(of_model("stride_tokens_total", 'kind=~"generated|prompt|cached"'))
    return [
        lines(
            "Tokens", "Tokens generated, computed of prompts, and spared by the prefix cache.", TOKENS,
            Query(total(tokens, "model", "kind"), "{{model}} {{kind}}"),
        ),
        lines(
            "Pictures", "Pictures finished, by procedure.", PICTURES,
            Query(total(PICTURES_MADE, "model", "procedure"), "{{model}} {{procedure}}"), stacked=True,
        ),
        lines(
            "Waiting and running", "Outputs in the queue, and those that hold memory. Waiting ones that only grow mean more load "
            "than the device serves.", "short",
            Query(total(WAITING, "model"), "waiting {{model}}"),
            Query(total(of_model("stride_requests_running"), "model"), "running {{model}}"),
        ),
    ]  # fmt: skip


def trouble() -> Panels:
    missed, asked = (rate(of_model(f"stride_deadlines{name}_total")) for name in ("_missed", ""))
    return [
        lines(
            "Wait in the queue", "From arrival to the first forward, by the axis of the procedure.", "s",
            *percentiles(by_axis(buckets("stride_queue_seconds")), "model", "axis"),
        ),
        lines(
            "Deadlines missed", "Share of the outputs with a deadline that never started or ended late. The line is where the "
            "alert begins.", "percentunit",
            Query(ratio(total(missed, "model"), total(asked, "model")), "{{model}}"), limit=MISSED_SHARE, share=True,
        ),
        lines(
            "Engine restarts", "Times in the last hour that the engine died and was started again. Each failed all that ran in "
            "it.", "short", Query(f"round(increase({of_instance('stride_engine_restarts_total')}[1h]))", "{{instance}}"),
        ),
    ]  # fmt: skip
