"""What do inference procedures cost, and what do they gain?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import board
from deploy.grafana.limits import MISSED_SHARE
from deploy.grafana.panels import EVALUATIONS, HALF, PICTURES, ROWS, TOKENS, Panels, Query, lines, number, percentiles
from deploy.grafana.promql import buckets, mean, of_model, rate, ratio, total
from service.procedures.registry import PROCEDURES

EACH = "model", "procedure"
FORWARDS, MADE = (rate(of_model(f"stride_request_{name}_total")) for name in ("forwards", "tokens"))
DRAFTED, ACCEPTED, REVISED = (
    rate(of_model("stride_tokens_total", f'kind="{kind}"')) for kind in ("drafted", "accepted", "revised")
)
ON_CANVAS = rate(of_model("stride_request_tokens_total", 'procedure=~"block_diffusion|masked_diffusion"'))
PLANNED, KEPT = (rate(of_model("stride_deadline_evaluations_total", f'outcome="{name}"')) for name in ("planned", "made"))
MISSED, HURRIED = (rate(of_model(f"stride_deadlines{name}_total")) for name in ("_missed", ""))
TEXTS = "|".join(name for name, each in PROCEDURES.items() if each.kind == "text")
CHOICES = rate(of_model("stride_deadline_choices_total"))


def dashboard() -> Dashboard:
    return board(
        "stride-procedures",
        "Procedures",
        "Tokens per forward, acceptance of guesses, evaluations of pictures, and what deadlines made of them.",
        numbers(),
        {"Texts": texts(), "Canvases": canvases(), "Pictures": pictures(), "Under deadlines": deadlines()},
    )


def numbers() -> Panels:
    return [
        number(
            "Tokens per forward", "Output tokens for each forward that a text takes part in, its prefill included. 1 is one "
            "token at a time.", "short", ratio(total(MADE), total(FORWARDS)),
        ),
        number("Acceptance", "Share of guessed tokens that were right.", "percentunit", ratio(total(ACCEPTED), total(DRAFTED))),
        number(
            "Canvas work", "Positions of canvases that were evaluated for each token that came of them. 1 would set every "
            "position at its first evaluation.", "short", ratio(total(REVISED), total(ON_CANVAS)),
        ),
        number("NFE", "Network evaluations of a picture, on average; a search counts as one.", "short", mean("stride_nfe")),
        number(
            "Kept of the plan", "Share of the planned evaluations that pictures with a deadline got. What is missing is load "
            "that is paid for with quality.", "percentunit", ratio(total(KEPT), total(PLANNED)),
            ((None, "red"), (0.3, "orange"), (0.7, "green")),
        ),
        number(
            "Deadlines missed", "Share of the outputs with a deadline that were late all the same, or never started.",
            "percentunit", ratio(total(MISSED), total(HURRIED)), ((None, "green"), (MISSED_SHARE, "red")),
        ),
    ]  # fmt: skip


def texts() -> Panels:
    return [
        lines(
            "Tokens per forward", "By procedure, of texts that ended, prefill included. autoregressive stays at 1 or below; "
            "guesses and canvases go above.", "short",
            Query(ratio(total(MADE, *EACH), total(FORWARDS, *EACH)), "{{model}} {{procedure}}"),
        ),
        lines(
            "Acceptance", "Share of guessed tokens that were right. Where it is low, less is guessed by itself; another "
            "drafter may suit the texts better.", "percentunit",
            Query(ratio(total(ACCEPTED, "model"), total(DRAFTED, "model")), "{{model}}"), share=True,
        ),
        lines(
            "Guesses", "Tokens that were guessed and verified, and those that were right.", TOKENS,
            Query(total(DRAFTED, "model"), "guessed {{model}}"), Query(total(ACCEPTED, "model"), "accepted {{model}}"),
        ),
    ]  # fmt: skip


def canvases() -> Panels:
    return [
        lines(
            "Positions evaluated", "Positions of canvases for which a forward gave a distribution, and the tokens of texts that "
            "were made on canvases, counted when they end.", TOKENS,
            Query(total(REVISED, "model"), "evaluated {{model}}"), Query(total(ON_CANVAS, "model"), "made {{model}}"), width=HALF,
        ),
        lines(
            "Revisions of a token", "How often a position is evaluated before it stays. A lower threshold sets more at once, "
            "at a price in quality.", "short",
            Query(ratio(total(REVISED, "model"), total(ON_CANVAS, "model")), "{{model}}"), width=HALF,
        ),
    ]  # fmt: skip


def pictures() -> Panels:
    return [
        lines(
            "NFE", "Network evaluations of a picture, by the procedure that ran. Guidance takes two a step where the network "
            "does not know its scale.", "short", *percentiles(buckets("stride_nfe"), *EACH),
        ),
        lines(
            "Refinement steps", "Rows that refined something, a latent or a canvas.", ROWS,
            Query(total(rate(of_model("stride_refine_steps_total")), "model"), "{{model}}"),
        ),
        lines(
            "Time of a picture", "From arrival to the picture, by the procedure that was asked for.", "s",
            *percentiles(buckets("stride_request_seconds", f'procedure!~"{TEXTS}"'), *EACH),
        ),
    ]  # fmt: skip


def deadlines() -> Panels:
    return [
        lines(
            "What deadlines left", "Pictures whose deadline chose, by the procedure that ran: full as planned without one, "
            "cheaper from the start, or shortened on the way.", PICTURES,
            Query(f"{total(CHOICES, *EACH, 'outcome')} > 0", "{{model}} {{procedure}} {{outcome}}"), stacked=True,
        ),
        lines(
            "Kept of the plan", "Share of the planned evaluations that pictures with a deadline got.", "percentunit",
            Query(ratio(total(KEPT, "model"), total(PLANNED, "model")), "{{model}}"), share=True,
        ),
        lines(
            "Evaluations spared", "Evaluations each second that deadlines took off the plan.", EVALUATIONS,
            Query(f"{total(PLANNED, 'model')} - {total(KEPT, 'model')}", "{{model}}"),
        ),
    ]  # fmt: skip
