"""The compose files name what is there, and agree with the settings and with the Dockerfile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api import drain
from service.engine.client import STOP_SECONDS
from service.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SETTINGS = Settings.model_validate({})


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Source and place of each."""
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in service.get("volumes", [])]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_is_there(name: str) -> None:
    for source, place in mounts(SERVICES[name]):
        if source.startswith("."):
            assert any((ROOT / source).iterdir()), f"{source} is mounted at {place}"
        else:
            assert source in COMPOSE["volumes"]


def test_grafana_finds_dashboards_where_its_provisioning_looks() -> None:
    placed = dict((place, source) for source, place in mounts(SERVICES["grafana"]))
    provisioning = ROOT / placed["/etc/grafana/provisioning"]
    for file in (provisioning / "dashboards").glob("*.yml"):
        for provider in yaml.safe_load(file.read_text())["providers"]:
            assert list((ROOT / placed[provider["options"]["path"]]).glob("*.json"))
    (told,) = [yaml.safe_load(file.read_text()) for file in (provisioning / "datasources").glob("*.yml")]
    assert told["datasources"][0]["url"] == "http://prometheus:9090"


def test_every_part_has_its_ports_and_a_health_check_that_asks_one_of_them() -> None:
    for name, service in SERVICES.items():
        inside = {port.rsplit(":", 1)[1] for port in service["ports"]}
        if name != "stride":
            check = " ".join(service["healthcheck"]["test"])
            assert set(re.findall(r"127\.0\.0\.1:(\d+)", check)) == inside
    assert {port.split(":")[0] for name in ("prometheus", "grafana") for port in SERVICES[name]["ports"]} == {"127.0.0.1"}


def test_prometheus_reads_a_configuration_that_is_mounted_and_asks_the_service() -> None:
    (config,) = [word.split("=")[1] for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file")]
    (source,) = [source for source, place in mounts(SERVICES["prometheus"]) if config.startswith(place)]
    told = yaml.safe_load((ROOT / source / Path(config).name).read_text())
    (job,) = [job for job in told["scrape_configs"] if job["job_name"] == "stride"]
    assert job["static_configs"][0]["targets"] == [f"stride:{SETTINGS.port}"] and job["metrics_path"] == "/metrics"


def test_the_service_is_built_from_targets_that_exist_and_listens_where_its_port_leads() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    for compose in (COMPOSE, GPU):
        target = compose["services"]["stride"]["build"]["target"]
        assert target in stages and compose["services"]["stride"]["image"] == f"stride:{target}"
    assert SERVICES["stride"]["ports"] == [f"{SETTINGS.port}:{SETTINGS.port}"]
    assert f"EXPOSE {SETTINGS.port}" in DOCKERFILE and f"STRIDE_PORT={SETTINGS.port}" in DOCKERFILE


def test_variables_of_the_service_are_settings() -> None:
    names = [word.split("=")[0] for word in SERVICES["stride"]["environment"]]
    names += re.findall(r"\bSTRIDE_[A-Z_]+(?==)", DOCKERFILE)
    assert {name.removeprefix("STRIDE_").lower() for name in names} <= set(Settings.model_fields)


def test_what_triton_loads_lies_where_code_may_be_loaded_from() -> None:
    """Docker mounts a tmpfs noexec, and Triton loads its bridge to the driver out of its cache."""
    (place,) = re.findall(r"TRITON_CACHE_DIR=(\S+)", DOCKERFILE)
    assert not any(place.startswith(mounted) for mounted in SERVICES["stride"]["tmpfs"])
    assert SERVICES["stride"]["read_only"] and any(place.startswith(mounted) for _, mounted in mounts(SERVICES["stride"]))


def test_it_is_not_killed_before_it_had_time_to_drain() -> None:
    needed = SETTINGS.drain_seconds + 2 * drain.LAST_WORDS_SECONDS + STOP_SECONDS + 4  # uvicorn, last spans
    assert int(SERVICES["stride"]["stop_grace_period"].removesuffix("s")) >= needed
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE
