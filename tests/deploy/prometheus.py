"""A real Prometheus: its own process over a folder of its own, asked through its HTTP API."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")

RANGES = {"[5m]": "[10s]", "[15m]": "[20s]"}
"""What the rules look back over, and what they do where a second stands for many."""


def hastened(rules: str) -> str:
    """The same rules, which look back less far, and alert as soon as something is wrong."""
    for slow, quick in RANGES.items():
        rules = rules.replace(slow, quick)
    rules = re.sub(r"(?m)^( +for:) \S+$", r"\1 0s", rules)
    assert "m]" not in rules
    return rules


@dataclass(frozen=True)
class Sample:
    """One series of an instant query's answer."""

    labels: dict[str, str]
    value: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)


class Prometheus:
    """Scrapes `target` every second by the committed configuration and evaluates the committed rules as often, hastened."""

    def __init__(self, folder: Path, target: str) -> None:
        assert PROMETHEUS is not None
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        (folder / "rules").mkdir()
        for file in RULES:
            (folder / "rules" / file.name).write_text(hastened(file.read_text(encoding="utf-8")), encoding="utf-8")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "log"
        command = [
            PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}", "--log.level=warn",
        ]  # fmt: skip
        with self._log.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self._client = httpx.Client(base_url=f"http://{address}", timeout=30)
        self.until(self._ready, 60, "Prometheus is not ready")

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def until(self, condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
        """Poll until the condition holds; an AssertionError that says `what` is wrong after so many seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"after {seconds} s: {what if isinstance(what, str) else what()}"
            time.sleep(0.2)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API; an AssertionError with its error where it is one."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    def query(self, expression: str) -> list[Sample]:
        """The series that an expression gives now, a vector or a scalar."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(series["metric"], float(series["value"][1])) for series in data["result"]]

    def firing(self) -> set[str]:
        """The names of alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(timeout=30)


def without_comparison(expression: str) -> list[str]:
    """What an alert, or a panel that leaves out zeros, looks at: each side of `and`, without the bound that it is held to."""
    sides = re.split(r"\s+and\s+", " ".join(expression.split()))
    return [re.sub(r"\s*(==|!=|>=|<=|>|<)\s*[\d.]+$", "", side) for side in sides]
