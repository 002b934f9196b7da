"""The manifests are what Kubernetes' schemas ask for, and agree with the service and with one another."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute

from service.api import drain
from service.api.app import create_app
from service.engine.client import STOP_SECONDS
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[2] / "deploy/kubernetes"
OVERLAYS = ["cpu", "gpu"]
CUSTOM = {"ServiceMonitor", "ScaledObject"}
Manifest = dict[str, Any]


def kustomization(folder: Path) -> Manifest:
    told: Manifest = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return told


def resources(folder: Path) -> list[Manifest]:
    """Of a kustomization and all that it names, before patches."""
    told, found = kustomization(folder), []
    for name in [*told.get("resources", []), *told.get("components", [])]:
        place = (folder / name).resolve()
        assert place.exists(), f"{folder.name} names {name}"
        found += resources(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
    return found


def key(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as far as the patches here need one: objects key by key, lists of named items by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{name: merged(base.get(name), value) for name, value in patch.items()}}
    named = isinstance(base, list) and isinstance(patch, list) and all("name" in item for item in [*base, *patch])
    if not named:
        return copy.deepcopy(patch)
    by_name = {item["name"]: item for item in base}
    return list((by_name | {item["name"]: merged(by_name.get(item["name"]), item) for item in patch}).values())


def built(overlay: str) -> dict[str, Manifest]:
    """What an overlay comes to, by kind."""
    folder = ROOT / "overlays" / overlay
    found = {key(manifest): manifest for manifest in resources(folder)}
    told = kustomization(folder)
    for entry in (entry for name in told["components"] for entry in kustomization(folder / name).get("patches", [])):
        target = next(manifest for manifest in found.values() if manifest["kind"] == entry["target"]["kind"])
        assert target["metadata"]["name"] == entry["target"]["name"]
        for operation in yaml.safe_load(entry["patch"]):
            assert operation["op"] == "remove"
            *parents, last = operation["path"].strip("/").split("/")
            del functools.reduce(lambda place, name: place[name], parents, target)[last]
    for entry in told["patches"]:
        patch = yaml.safe_load((folder / entry["path"]).read_text())
        assert key(patch) in found, f"{overlay} patches {key(patch)}, which is not there"
        found[key(patch)] = merged(found[key(patch)], patch)
    kinds = {kind: manifest for (_, kind, _), manifest in found.items()}
    assert len(kinds) == len(found)
    for image in told["images"]:
        for container in kinds["Deployment"]["spec"]["template"]["spec"]["containers"]:
            if container["image"] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
    return kinds


@pytest.fixture(scope="module", params=OVERLAYS)
def kinds(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return built(request.param)


def pod(kinds: dict[str, Manifest]) -> Manifest:
    spec: Manifest = kinds["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(kinds: dict[str, Manifest]) -> Manifest:
    (only,) = pod(kinds)["containers"]
    found: Manifest = only
    return found


def test_every_manifest_is_valid(kinds: dict[str, Manifest]) -> None:
    assert set(kinds) > {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", *CUSTOM}
    for kind, manifest in kinds.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(manifest, "1.31", strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_the_same_of_it(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(ROOT / "overlays" / overlay)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    made = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(told)}
    assert _sorted(made) == _sorted(built(overlay))


def _sorted(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
        return sorted((_sorted(item) for item in value), key=lambda item: item["name"])
    return {name: _sorted(item) for name, item in value.items()} if isinstance(value, dict) else value


def test_probes_ask_routes_that_exist_at_the_port_where_the_service_listens(kinds: dict[str, Manifest]) -> None:
    routes = {route.path for route in _routes()}
    each = container(kinds)
    (port,) = each["ports"]
    assert port == {"name": "http", "containerPort": Settings.model_validate({}).port}
    asked = {name: each[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert all(probe["path"] in routes and probe["port"] == "http" for probe in asked.values())
    assert asked["liveness"]["path"] == "/health/live" and asked["readiness"]["path"] == "/health/ready"
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def _routes() -> list[APIRoute]:
    app = create_app(Settings.model_validate({}))
    paths = app.openapi()["paths"]
    return [APIRoute(path, lambda: None) for path in paths]


def test_a_pod_has_time_to_drain_before_it_is_killed(kinds: dict[str, Manifest]) -> None:
    each = container(kinds)
    settings = {entry["name"]: entry.get("value") for entry in each["env"]}
    before = float(each["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = before + float(settings["STRIDE_DRAIN_SECONDS"]) + 2 * drain.LAST_WORDS_SECONDS + STOP_SECONDS
    needed += 4  # uvicorn, last spans
    assert pod(kinds)["terminationGracePeriodSeconds"] >= needed
    assert {name.removeprefix("STRIDE_").lower() for name in settings} <= set(Settings.model_fields)


def test_a_service_of_this_name_gives_pods_no_settings(kinds: dict[str, Manifest]) -> None:
    """Kubernetes sets NAME_PORT=tcp://... and the like for every service of the namespace, over what the image says."""
    prefix = kinds["Service"]["metadata"]["name"].upper().replace("-", "_") + "_"
    assert prefix == Settings.model_config["env_prefix"] and pod(kinds)["enableServiceLinks"] is False


def test_a_pod_may_do_nothing_that_it_need_not(kinds: dict[str, Manifest]) -> None:
    spec, each = pod(kinds), container(kinds)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {spec['securityContext']['runAsUser']}:" in (ROOT.parents[1] / "Dockerfile").read_text()
    own = each["securityContext"]
    assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"] and own["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    assert {mount["name"] for mount in each["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert "memory" in each["resources"]["limits"] and "cpu" in each["resources"]["requests"]


def test_everything_that_selects_selects_the_pods(kinds: dict[str, Manifest]) -> None:
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        kinds["Deployment"]["spec"]["selector"]["matchLabels"], kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]  # fmt: skip
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert {manifest["metadata"].get("namespace", manifest["metadata"]["name"]) for manifest in kinds.values()} == {"stride"}


def test_the_service_monitor_scrapes_the_port_of_the_service(kinds: dict[str, Manifest]) -> None:
    spec, service = kinds["ServiceMonitor"]["spec"], kinds["Service"]
    assert kinds["ServiceMonitor"]["apiVersion"] == "monitoring.coreos.com/v1"
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]} and endpoint["path"] == "/metrics"
    assert _seconds(endpoint["scrapeTimeout"]) < _seconds(endpoint["interval"])


def _seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_autoscaling_scales_the_deployment_on_metrics_that_there_are(kinds: dict[str, Manifest]) -> None:
    scaled = kinds["ScaledObject"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    assert spec["scaleTargetRef"] == {"name": kinds["Deployment"]["metadata"]["name"]}
    assert 0 < spec["minReplicaCount"] <= spec["maxReplicaCount"]
    assert "replicas" not in kinds["Deployment"]["spec"], "every apply would set back what the autoscaler chose"
    declared = {metric.name for metric in Metrics().registry.collect()}
    for trigger in spec["triggers"]:
        told = trigger["metadata"]
        assert trigger["type"] == "prometheus" and float(told["threshold"]) > 0
        assert told["serverAddress"].startswith("http")
        assert set(re.findall(r"\bstride_[a-z_]+\b(?=[{\[])", told["query"])) <= declared
        assert f'job="{kinds["Service"]["metadata"]["name"]}"' in told["query"] and 'namespace="stride"' in told["query"]
