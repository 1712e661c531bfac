"""The manifests against Kubernetes' own schemas, and against the code and the Compose file that they repeat."""

from __future__ import annotations

import re
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from batching.settings import Settings
from batching.states import ProfileState
from tests.documentation.exempt import is_parsed
from tests.documentation.pages import ROOT, blocks

FOLDER: Final = ROOT / "deploy" / "kubernetes"
FILES: Final = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
KUSTOMIZATION: Final = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
#: The oldest that these files are meant for, and a late one.
VERSIONS: Final = ("1.29", "1.33")

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    return [each for path in FILES for each in yaml.safe_load_all(path.read_text())]


MANIFESTS: Final = manifests()
NAMES: Final = [f"{each['kind']}/{each['metadata']['name']}" for each in MANIFESTS]


def of_kind(*kinds: str) -> list[Manifest]:
    return [each for each in MANIFESTS if each["kind"] in kinds]


def named(kind: str, name: str) -> Manifest:
    return next(each for each in of_kind(kind) if each["metadata"]["name"] == name)


WORKLOADS: Final = of_kind("Deployment", "Job")


def pod(workload: Manifest) -> Manifest:
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def container(workload: Manifest) -> Manifest:
    [found] = pod(workload)["containers"]
    result: Manifest = found
    return result


def by_name(workload: Manifest) -> str:
    return str(workload["metadata"]["name"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=NAMES)
def test_kubernetes_knows_every_field(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validation_can_fail() -> None:
    wrong = yaml.safe_load((FOLDER / "worker.yaml").read_text().split("---")[0])
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_kustomization_has_every_file_and_the_namespace_comes_first() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == [path.name for path in FILES]
    assert KUSTOMIZATION["resources"][0] == "namespace.yaml"
    assert {each["metadata"].get("namespace") for each in MANIFESTS if each["kind"] != "Namespace"} == {"batching"}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_a_pod_has_no_privilege(workload: Manifest) -> None:
    assert pod(workload)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(workload)["automountServiceAccountToken"] is False
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_a_command_exists_and_is_that_of_compose(workload: Manifest) -> None:
    command = container(workload)["command"]
    is_parsed(" ".join(command))
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][
        {"batching-migrate": "migrate", "batching-dashboard": "dashboard"}.get(
            by_name(workload), by_name(workload).removeprefix("batching-")
        )
    ]
    plain = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in service["command"]]
    assert command == plain


@pytest.mark.parametrize("workload", WORKLOADS, ids=by_name)
def test_every_variable_is_a_setting(workload: Manifest) -> None:
    known = {f"BATCHING_{name.upper()}" for name in Settings.model_fields}
    assert {each["name"] for each in container(workload).get("env", [])} <= known
    assert container(workload)["envFrom"] == [
        {"configMapRef": {"name": "batching"}},
        {"secretRef": {"name": "batching"}},
    ]


def test_the_map_and_the_secret_are_settings_too() -> None:
    known = {f"BATCHING_{name.upper()}" for name in Settings.model_fields}
    data = named("ConfigMap", "batching")["data"]
    secret = dict(re.findall(r"^(\w+)=(.+)$", (FOLDER / "secret.env.example").read_text(), flags=re.MULTILINE))
    assert set(data) | set(secret) <= known
    assert not set(data) & set(secret)
    secret["BATCHING_WEB_TOKENS"] = secret["BATCHING_WEB_TOKENS"].replace("SHA256", "0" * 64)
    Settings(**{name.removeprefix("BATCHING_").lower(): value for name, value in {**data, **secret}.items()})


def test_a_worker_gets_longer_to_stop_than_it_drains() -> None:
    drain = float(named("ConfigMap", "batching")["data"]["BATCHING_DRAIN_TIMEOUT"])
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    grace = pod(named("Deployment", "batching-worker"))["terminationGracePeriodSeconds"]
    assert grace >= drain + 10
    assert f"{grace}s" == compose["services"]["worker"]["stop_grace_period"]


def test_selectors_select_what_is_there() -> None:
    labels = {by_name(each): each["spec"]["template"]["metadata"]["labels"] for each in WORKLOADS}
    for each in of_kind("Deployment", "PodDisruptionBudget"):
        assert each["spec"]["selector"]["matchLabels"] == labels[by_name(each)]
    for workload in WORKLOADS:
        for spread in pod(workload).get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"] == labels[by_name(workload)]
    for each in of_kind("HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]
        scaled = named(target["kind"], target["name"])
        assert "replicas" not in scaled["spec"], "the autoscaler and whoever applies the file would fight over it"


def test_policies_let_nothing_in_that_is_not_named() -> None:
    everything = named("NetworkPolicy", "batching")["spec"]
    assert everything["podSelector"] == {}
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everything
    components = {each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] for each in WORKLOADS}
    for each in of_kind("NetworkPolicy"):
        for expression in each["spec"]["podSelector"].get("matchExpressions", []):
            assert set(expression["values"]) <= components


@pytest.mark.parametrize("workload", of_kind("Deployment"), ids=by_name)
def test_probes_ask_where_the_part_answers(workload: Manifest) -> None:
    found = container(workload)
    [port] = found["ports"]
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert found[probe]["httpGet"] == {"path": path, "port": port["name"]}
    health = [each["value"] for each in found["env"] if each["name"] == "BATCHING_HEALTH_ADDRESS"]
    told = health or [f"{found['command'][3]}:{found['command'][5]}"]  # the dashboard's --host and --port
    assert told == [f"0.0.0.0:{port['containerPort']}"]


def test_the_service_leads_to_the_dashboard() -> None:
    [service] = of_kind("Service")
    dashboard = named("Deployment", "batching-dashboard")
    assert service["spec"]["selector"] == dashboard["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == container(dashboard)["ports"][0]["name"]


def test_the_metric_of_the_guide_is_told_and_its_autoscaler_is_valid() -> None:
    [text] = [block.text for block in blocks("docs/guide/kubernetes.md") if block.language == "yaml"]
    scaler = named("HorizontalPodAutoscaler", "batching-worker")
    with_it = {**scaler, "spec": {**scaler["spec"], **yaml.safe_load(text)}}
    kubernetes_validate.validate(with_it, VERSIONS[0], strict=True)
    metric = with_it["spec"]["metrics"][0]["external"]["metric"]
    assert f"| `{metric['name']}` | gauge |" in (ROOT / "docs" / "guide" / "metrics.md").read_text()
    assert set(metric["selector"]["matchLabels"].values()) <= set(ProfileState)


def test_the_guide_speaks_of_every_file() -> None:
    text = (ROOT / "docs" / "guide" / "kubernetes.md").read_text()
    for path in FILES:
        assert f"({path.name})" in text or f"/{path.name})" in text, path.name
