"""deploy/kubernetes: valid by Kubernetes' own schemas, and the parts fit each other and the node."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nebuladb.errors import ConfigurationError
from nebuladb.server import config
from nebuladb.server.admin import READY_SECONDS
from nebuladb.server.lifecycle import CLOSE_SECONDS, DRAIN_SECONDS
from tools.compose_test.image import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DOCUMENTS: list[dict[str, Any]] = [
    document for name in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((FOLDER / name).read_text())
]
VERSIONS = ("1.33", "1.35", kubernetes_validate.latest_version())
LABELS = {"app.kubernetes.io/name": "nebuladb"}


def one(kind: str, name: str = "nebula") -> dict[str, Any]:
    found = [document for document in DOCUMENTS if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}"
    return found[0]


SET = one("StatefulSet")["spec"]
POD = SET["template"]["spec"]
NODE = POD["containers"][0]


def test_every_file_is_a_resource() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == sorted(
        [*KUSTOMIZATION["resources"], "kustomization.yaml"]
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda document: f"{document['kind']}-{document['metadata']['name']}"
)
def test_the_schema_is_kept(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_see_what_is_wrong() -> None:
    wrong = yaml.safe_load((FOLDER / "statefulset.yaml").read_text())
    wrong["spec"]["replica"] = wrong["spec"].pop("replicas")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kustomize_itself_accepts() -> None:
    kustomize = shutil.which("kustomize")
    if kustomize is None:
        pytest.skip("no kustomize here")
    done = subprocess.run([kustomize, "build", FOLDER], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(DOCUMENTS)
    for document in built:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


def test_whatever_selects_selects_the_nodes() -> None:
    nodes, clients = one("Service", "nebula-nodes")["spec"], one("Service")["spec"]
    assert nodes["selector"] == clients["selector"] == LABELS
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        assert one(kind)["spec"]["selector"] == {"matchLabels": LABELS}
    assert SET["template"]["metadata"]["labels"] == LABELS
    (rule,) = POD["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule == {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": LABELS}}
    assert one("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": LABELS}


def test_nodes_can_be_found_before_they_are_ready_and_lost_one_at_a_time() -> None:
    headless = one("Service", "nebula-nodes")["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    assert SET["podManagementPolicy"] == "Parallel"
    assert SET["serviceName"] == "nebula-nodes"
    assert one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_every_pod_s_environment_is_a_node_s_configuration() -> None:
    for number in range(SET["replicas"]):
        name = f"nebula-{number}"
        environ = {}
        for variable in NODE["env"]:
            value = variable.get("value")
            if value is None:
                assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
                value = name
            environ[variable["name"]] = value.replace("$(NEBULA_NAME)", name)
        loaded = config.load({}, environ, ROOT / "deploy" / "docker" / "nebulad.toml")
        loaded.check_founding()
        assert loaded.name == name
        assert loaded.advertise_peer_addr == f"{name}.{SET['serviceName']}:7380"
        assert len(loaded.initial_cluster) == SET["replicas"]
        (mount,) = NODE["volumeMounts"]
        assert loaded.data_dir.is_relative_to(mount["mountPath"])
        assert loaded.memory * 2 <= 1 << 30
    assert NODE["resources"]["limits"]["memory"] == "1Gi"


def test_a_name_that_is_not_among_the_founders_is_refused_in_words() -> None:
    environ = {variable["name"]: variable.get("value", "nebula-3") for variable in NODE["env"]}
    environ = {key: value.replace("$(NEBULA_NAME)", "nebula-3") for key, value in environ.items()}
    with pytest.raises(ConfigurationError, match="'nebula-3' is not in it"):
        config.load({}, environ, ROOT / "deploy" / "docker" / "nebulad.toml")


def test_probes_ask_the_right_pages_and_give_them_time() -> None:
    assert {probe: NODE[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert NODE["readinessProbe"]["timeoutSeconds"] > READY_SECONDS
    assert POD["terminationGracePeriodSeconds"] > DRAIN_SECONDS + CLOSE_SECONDS
    assert POD["shareProcessNamespace"] is True, "process 1 has no default action for SIGTERM"
    assert {port["name"]: port["containerPort"] for port in NODE["ports"]} == {
        "client": 7379, "peer": 7380, "admin": 7381,
    }  # fmt: skip


def test_a_pod_may_nothing() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == 7379
    assert NODE["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
