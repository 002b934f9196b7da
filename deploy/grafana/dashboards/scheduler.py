"""What does the device do, tick by tick, and who waits for it?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import board
from deploy.grafana.limits import KV_SHARE
from deploy.grafana.panels import HALF, ROWS, Panels, Query, lines, number, percentiles
from deploy.grafana.promql import buckets, mean, of_instance, of_model, quantile, rate, ratio, total

USED, BLOCKS = of_model("stride_kv_blocks", 'state="used"'), of_model("stride_kv_blocks")
CACHED = rate(of_model("stride_tokens_total", 'kind="cached"'))
PROMPTS = rate(of_model("stride_tokens_total", 'kind=~"cached|prompt"'))
TAKEN, DEVICES = rate(of_model("stride_forward_seconds_sum")), f"scalar(count({of_instance('stride_engine_up')}))"
FORWARDS = rate(of_model("stride_forward_seconds_count"))
PREEMPTIONS = rate(of_model("stride_preemptions_total"))
MISSED = rate(of_model("stride_deadlines_missed_total"))


def dashboard() -> Dashboard:
    return board(
        "stride-scheduler",
        "Scheduler",
        "What each tick of the engine ran, how long it took, who waited for whom, and memory.",
        numbers(),
        {"What forwards held": forwards(), "Time": seconds(), "Who waits": waits(), "Memory": memory()},
    )


def numbers() -> Panels:
    return [
        number(
            "Device busy", "Share of time spent in forwards. Near 100 % the device is what limits.", "percentunit",
            f"avg({of_instance('stride_device_busy_ratio')})",
        ),
        number(
            "Batch fill", "Share of the rows, or of the tokens, for which a forward had room and that were taken, on average. "
            "Where it is low, the device could serve more at nearly the same cost.", "percentunit",
            mean("stride_batch_fill_ratio"),
        ),
        number("Forwards", "Forwards of all models each second.", "ops", total(FORWARDS)),
        number(
            "KV in use", "Share of the KV blocks that running requests hold. Those only cached are free for the asking.",
            "percentunit", ratio(total(USED), total(BLOCKS)), ((None, "green"), (0.8, "orange"), (KV_SHARE, "red")),
        ),
        number(
            "Prefix cache", "Share of prompts' tokens that were not computed, since others had computed them.", "percentunit",
            ratio(total(CACHED), total(PROMPTS)),
        ),
        number(
            "Preemptions", "Requests each second that were set back for memory and compute again what they had.", "ops",
            total(PREEMPTIONS), ((None, "green"), (1, "orange")),
        ),
    ]  # fmt: skip


def forwards() -> Panels:
    rows, tokens, fill = (buckets(f"stride_batch_{name}") for name in ("rows", "tokens", "fill_ratio"))
    return [
        lines(
            "Rows by axis", "Rows that forwards ran: expand makes something longer, refine makes it better; encode, decode and "
            "score are what pictures need beside that.", ROWS,
            Query(total(rate(of_model("stride_moves_total")), "axis"), "{{axis}}"), width=HALF, stacked=True,
        ),
        lines(
            "Rows in a forward", "How many rows share a forward, on average and in the fullest 5 % of forwards.", "short",
            Query(mean("stride_batch_rows", "model"), "mean {{model}}"), Query(quantile(0.95, rows, "model"), "p95 {{model}}"),
            width=HALF,
        ),
        lines(
            "Tokens in a forward", "Query tokens of a forward of a text model: prompts in chunks, drafts, canvases and single "
            "tokens together.", "short",
            Query(mean("stride_batch_tokens", "model"), "mean {{model}}"),
            Query(quantile(0.95, tokens, "model"), "p95 {{model}}"),
            width=HALF,
        ),
        lines(
            "Batch fill", "Share of a forward's room for rows or for tokens that was taken, whichever is more. The room for "
            "tokens is what the time for a forward allows.", "percentunit",
            Query(mean("stride_batch_fill_ratio", "model"), "mean {{model}}"),
            Query(quantile(0.95, fill, "model"), "p95 {{model}}"),
            width=HALF, share=True,
        ),
    ]  # fmt: skip


def seconds() -> Panels:
    return [
        lines(
            "Forward time", "Seconds of one forward of the network. p95 of one model is what another's token may wait for.", "s",
            *percentiles(buckets("stride_forward_seconds"), "model"),
        ),
        lines(
            "Host time", "Seconds around a forward in which the device waits: choosing a batch, folding in what came, sending "
            "events. Worth a look where it is more than a tenth of the forward.", "s",
            *percentiles(buckets("stride_scheduler_seconds"), "model"),
        ),
        lines(
            "Device by model", "Share of the devices' time that forwards of each model take. Models that all have work get equal "
            "shares.", "percentunit", Query(f"{total(TAKEN, 'model')} / {DEVICES}", "{{model}}"), stacked=True,
        ),
    ]  # fmt: skip


def waits() -> Panels:
    waited = rate(of_model("stride_waited_seconds_total"))
    return [
        lines(
            "Who waited for whom", "How many requests of a model stood still, on average, while a forward of another ran, or "
            "one of their own that had no room for them; in the queue or set aside for a tick.", "short",
            Query(total(waited, "model", "behind"), "{{model}} behind {{behind}}"), width=HALF, stacked=True,
        ),
        lines(
            "Waiting and running", "Requests in the queue, and those that hold memory.", "short",
            Query(total(of_model("stride_requests_waiting"), "model"), "waiting {{model}}"),
            Query(total(of_model("stride_requests_running"), "model"), "running {{model}}"), width=HALF,
        ),
    ]  # fmt: skip


def memory() -> Panels:
    return [
        lines(
            "KV blocks", "Blocks that running requests hold, those kept for prompts that begin the same way, and free ones.",
            "short", Query(total(BLOCKS, "model", "state"), "{{model}} {{state}}"), stacked=True,
        ),
        lines(
            "Prefix cache hits", "Share of prompts' tokens that were found in the cache. It falls when prompts stop beginning "
            "alike, or memory is too small to keep them.", "percentunit",
            Query(ratio(total(CACHED, "model"), total(PROMPTS, "model")), "{{model}}"), share=True,
        ),
        lines(
            "Set back and late", "Requests set back for memory, and deadlines missed, each second. Preemptions that do not stop "
            "waste the device: give the model more KV memory, or run fewer requests at a time.", "ops",
            Query(total(PREEMPTIONS, "model"), "set back {{model}}"), Query(total(MISSED, "model"), "deadline missed {{model}}"),
        ),
    ]  # fmt: skip
