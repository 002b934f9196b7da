"""A dashboard of Stride: variables on top, a line of numbers, then rows of panels."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.panels import SOURCE, Panels
from deploy.grafana.promql import of_instance, rate

SOURCE_UID = "stride-prometheus"
"""Of the provisioned data source; elsewhere another can be chosen on top of the dashboard."""
TAG = "stride"


def board(uid: str, title: str, description: str, numbers: Panels, rows: Mapping[str, Panels]) -> Dashboard:
    """`rows` are panels under their heading, whose widths fill lines of 24."""
    restarts = rate(of_instance("stride_engine_restarts_total"))
    made = (
        builders.Dashboard(f"Stride / {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .link(builders.DashboardLink("Stride").type(DashboardLinkType.DASHBOARDS).tags([TAG]).include_vars(True).keep_time(True))
        .with_variable(_source())
        .with_variable(_choice("instance", "Instance", "label_values(stride_build_info, instance)"))
        .with_variable(_choice("model", "Model", f"label_values({of_instance('stride_requests_running')}, model)"))
        .annotation(
            builders.AnnotationQuery()
            .name("Engine restarts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr(f"{restarts} > 0")
        )
    )
    for panel in numbers:
        made = made.with_panel(panel)
    for heading, panels in rows.items():
        made = made.with_row(builders.Row(heading))
        for panel in panels:
            made = made.with_panel(panel)
    built = made.build()
    for identity, each in enumerate(built.panels or [], 1):
        each.id_val = identity
    return built


def _source() -> builders.DatasourceVariable:
    here = VariableOption(selected=True, text="Prometheus", value=SOURCE_UID)
    return builders.DatasourceVariable("datasource").label("Data source").type("prometheus").current(here)


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    """Some of the values that a query gives, or all."""
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
