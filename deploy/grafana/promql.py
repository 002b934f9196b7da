"""The few forms of PromQL that the panels are made of. Every selector follows the variables of the dashboard."""

from __future__ import annotations

INSTANCE = 'instance=~"$instance"'
MODEL = 'model=~"$model"'
WINDOW = "$__rate_interval"


def of_instance(metric: str, *matchers: str) -> str:
    """Series of what has no model."""
    return f"{metric}{{{', '.join([INSTANCE, *matchers])}}}"


def of_model(metric: str, *matchers: str) -> str:
    return of_instance(metric, MODEL, *matchers)


def rate(series: str) -> str:
    return f"rate({series}[{WINDOW}])"


def total(expression: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def ratio(part: str, whole: str) -> str:
    """Nothing, instead of a division by zero, where there is no whole."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str, *by: str) -> str:
    """What was observed, on average."""
    return ratio(total(rate(of_model(f"{histogram}_sum")), *by), total(rate(of_model(f"{histogram}_count")), *by))


def buckets(histogram: str, *matchers: str) -> str:
    return rate(of_model(f"{histogram}_bucket", *matchers))


def by_axis(rates: str) -> str:
    """Series with model and procedure get its axis (expand, refine or both) as a label."""
    return f"{rates} * on (instance, model, procedure) group_left (axis) stride_procedure_info"


def quantile(share: float, rates: str, *by: str) -> str:
    """The value below which this share of observations lies, from the rates of a histogram's buckets."""
    return f"histogram_quantile({share}, {total(rates, 'le', *by)})"
