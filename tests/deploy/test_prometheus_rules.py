"""The rules of Prometheus by its own tool, and that what is said of them is so."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from deploy.grafana import limits
from tests.deploy.prometheus import FOLDER, PROMTOOL, RULES, hastened, without_comparison

ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((FOLDER / "rules" / "alerting.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}


def promtool(*arguments: str) -> None:
    if PROMTOOL is None:
        pytest.skip("promtool, of Prometheus, is not installed")
    run = subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", *(str(file) for file in RULES))


def test_every_alert_fires_on_its_fault_alone() -> None:
    promtool("test", "rules", "tests/alerting.yml")
    tested = (FOLDER / "tests" / "alerting.yml").read_text(encoding="utf-8")
    assert not [name for name in ALERTS if name not in tested]


def test_every_alert_says_what_is_wrong_and_where_to_read_on() -> None:
    handbook = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^### (.+)$", handbook)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"deploy/README.md#{name.lower()}"


@pytest.mark.parametrize(
    ("alert", "limit"),
    [
        ("StrideQueueGrowing", limits.QUEUE_SHARE),
        ("StrideDeadlinesMissed", limits.MISSED_SHARE),
        ("StrideKVPoolFull", limits.KV_SHARE),
        ("StrideErrorRatio", limits.FAILED_SHARE),
        ("StrideSlowFirstOutput", limits.FIRST_OUTPUT_SECONDS),
    ],
)
def test_panels_turn_red_where_alerts_begin(alert: str, limit: float) -> None:
    bounds = re.findall(r"> ([\d.]+)", ALERTS[alert]["expr"])
    assert float(bounds[0]) == limit


def test_hastening_changes_durations_alone() -> None:
    for file in RULES:
        slow, quick = (yaml.safe_load(text) for text in (file.read_text(), hastened(file.read_text())))
        for before, after in zip(slow["groups"], quick["groups"], strict=True):
            for rule, hastier in zip(before["rules"], after["rules"], strict=True):
                assert re.sub(r"\[\w+\]", "", rule["expr"]) == re.sub(r"\[\w+\]", "", hastier["expr"])
                assert rule.keys() == hastier.keys() and hastier.get("for", "0s") == "0s"


def test_what_is_compared_is_found() -> None:
    assert without_comparison('up{a="b"} == 0') == ['up{a="b"}']
    assert without_comparison("x:ratio > 0.1 and\n deriv(x:ratio[5m]) > 0") == ["x:ratio", "deriv(x:ratio[5m])"]
    assert without_comparison("sum(a) / (sum(b) > 0)") == ["sum(a) / (sum(b) > 0)"]
