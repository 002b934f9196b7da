"""Percentiles and rates of a benchmark: as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.bench.client import Outcome

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MEASURES = {"first_output": "first output", "between_tokens": "between tokens", "end_to_end": "end to end"}


@dataclass(frozen=True)
class Summary:
    """Rates over the whole run, and for each kind of request the percentiles, in seconds, of each measure."""

    requests: int
    errors: int
    wall_seconds: float
    requests_per_second: float
    tokens_per_second: float
    images_per_second: float
    latency: dict[str, dict[str, dict[str, float]]]
    error_messages: dict[str, int]


def percentile(values: Sequence[float], quantile: float) -> float:
    """Linear interpolation between the closest ranks, as numpy does it. `values` must not be empty."""
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measured(outcomes: Sequence[Outcome], kind: str) -> dict[str, list[float]]:
    """Every measurement of the good requests of one kind.

    `between_tokens` is the time between successive `token` events; a procedure that commits several tokens at once has
    fewer and longer ones.
    """
    good = [outcome for outcome in outcomes if outcome.kind == kind and outcome.error is None]
    return {
        "first_output": [outcome.first_output for outcome in good if outcome.first_output is not None],
        "between_tokens": [gap for outcome in good for gap in outcome.gaps],
        "end_to_end": [outcome.total for outcome in good],
    }


def summarise(outcomes: Sequence[Outcome], wall_seconds: float) -> Summary:
    """Rates count what good requests delivered."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    messages: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            messages[outcome.error] = messages.get(outcome.error, 0) + 1
    latency = {
        kind: {
            measure: {name: percentile(values, quantile) for name, quantile in QUANTILES.items()}
            for measure, values in measured(outcomes, kind).items()
            if values
        }
        for kind in ("text", "image")
    }
    return Summary(
        requests=len(outcomes),
        errors=len(outcomes) - len(good),
        wall_seconds=wall_seconds,
        requests_per_second=len(good) / wall_seconds,
        tokens_per_second=sum(outcome.tokens for outcome in good) / wall_seconds,
        images_per_second=sum(outcome.images for outcome in good) / wall_seconds,
        latency={kind: table for kind, table in latency.items() if table},
        error_messages=messages,
    )


def as_table(summary: Summary) -> str:
    """The summary for a terminal; milliseconds."""
    lines = [f"{'':6} {'milliseconds':15}" + "".join(f"{name:>10}" for name in QUANTILES)]
    for kind, table in summary.latency.items():
        for measure, values in table.items():
            cells = "".join(f"{1e3 * values[name]:10.1f}" for name in QUANTILES)
            lines.append(f"{kind:6} {MEASURES[measure]:15}{cells}")
    lines += ["", rates(summary)]
    lines += [f"  {count} x {message}" for message, count in summary.error_messages.items()]
    return "\n".join(lines)


def rates(summary: Summary) -> str:
    """The run in one line."""
    return (
        f"{summary.requests} requests in {summary.wall_seconds:.2f} s: {summary.tokens_per_second:.1f} tokens/s, "
        f"{summary.images_per_second:.2f} images/s, {summary.errors} errors"
    )


def write_json(file: Path, options: dict[str, Any], summary: Summary, outcomes: Sequence[Outcome]) -> None:
    """The options, the summary and every request, so that any other figure can be worked out later."""
    content = {"options": options, "summary": asdict(summary), "requests": [asdict(outcome) for outcome in outcomes]}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_plot(file: Path, summary: Summary, outcomes: Sequence[Outcome]) -> None:
    """The cumulative distribution of each measure, a curve for each kind of request, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(rates(summary), fontsize=10)
    for axes, (measure, label) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for kind in ("text", "image"):
            values = sorted(measured(outcomes, kind)[measure])
            if values:
                axes.step([1e3 * value for value in values], _ranks(len(values)), where="post", label=kind)
        axes.set(title=label, xlabel="milliseconds", ylim=(0, 1.02))
        if axes.lines:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120, format="png")


def _ranks(count: int) -> list[float]:
    return [(rank + 1) / count for rank in range(count)]
