"""How a panel of Stride looks: a number with a threshold, or lines over time with a legend below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    FieldColorModeId,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

from deploy.grafana.promql import quantile

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HALF, THIRD, SIXTH = 12, 8, 4
LINES_HEIGHT, NUMBER_HEIGHT = 8, 4
TOKENS, PICTURES, ROWS, EVALUATIONS = (f"suffix: {what}/s" for what in ("tokens", "pictures", "rows", "evaluations"))

Panels = list[Builder[Panel]]
Step = tuple[float | None, str]
"""The value from which on a color holds, None from the start, and the color."""

PLAIN: tuple[Step, ...] = ((None, "blue"),)


@dataclass(frozen=True)
class Query:
    """An expression, and the name of its lines, in which `{{label}}` is the value of a label of theirs."""

    expression: str
    legend: str


def percentiles(rates: str, *by: str) -> tuple[Query, Query]:
    """The median, and what one in 20 exceeds."""
    name = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(quantile(0.5, rates, *by), f"p50 {name}"), Query(quantile(0.95, rates, *by), f"p95 {name}")


def number(
    title: str, description: str, unit: str, expression: str, steps: tuple[Step, ...] = PLAIN, words: Mapping[int, str] = {}
) -> Builder[Panel]:  # fmt: skip
    """One number in the color of its step, with its course behind it; `words` are shown in place of values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(SIXTH)
        .height(NUMBER_HEIGHT)
        .thresholds(_steps(steps))
        .no_value("–")
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE if words else BigValueGraphMode.AREA)
        .text_mode(BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(Query(expression, title), 0))
    )
    if words:
        panel = panel.mappings([ValueMap({str(value): ValueMappingResult(text=word) for value, word in words.items()})])
    return panel


def lines(
    title: str, description: str, unit: str, *queries: Query, width: int = THIRD, limit: float | None = None,
    stacked: bool = False, share: bool = False,
) -> Builder[Panel]:  # fmt: skip
    """Lines over time. `limit` is where an alert begins, drawn as a dashed line; a `share` goes from 0 to 1."""
    style = GraphThresholdsStyleMode.OFF if limit is None else GraphThresholdsStyleMode.DASHED
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(width)
        .height(LINES_HEIGHT)
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .thresholds(_steps(((None, "green"),) if limit is None else ((None, "green"), (limit, "red"))))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
        .line_width(1.5)
        .fill_opacity(30 if stacked else 5)
        .show_points(VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if share:
        panel = panel.max(1)
    for i, query in enumerate(queries):
        panel = panel.with_target(_target(query, i))
    return panel


def _steps(steps: tuple[Step, ...]) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value, color) for value, color in steps])


def _target(query: Query, index: int) -> prometheus.Dataquery:
    name = "ABCDEF"[index]
    return prometheus.Dataquery().ref_id(name).datasource(SOURCE).expr(query.expression).legend_format(query.legend).range()
