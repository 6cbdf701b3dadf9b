"""What must hold of the objects together, whatever the values."""

import json
import re

import pytest
import yaml

from cases import EVERYTHING, SECRETS, SHARED, TOKEN
from conftest import CHART, ROOT, Rendered, component, rendered_case

# The service's own, after its drain: src/service.rs, STOP_TIMEOUT and SANDBOX_TIMEOUT.
STOP_SECONDS = 10 + 2


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def test_a_pod_is_given_the_time_that_its_drain_takes(release):
    drain = release.values["drain"]
    given = drain.get("delaySeconds")
    before = given if given is not None else 40 if release.values["envoy"]["enabled"] else 5
    # The service's own delay, and no preStop before it: so health says at once that the pod leaves, while it still serves.
    assert f'drain_delay = "{before}s"' in release.settings_file and "lifecycle" not in release.container
    assert release.pod["terminationGracePeriodSeconds"] > drain["timeoutSeconds"] + STOP_SECONDS + before
    assert f'drain_timeout = "{drain["timeoutSeconds"]}s"' in release.settings_file


def test_the_stop_time_is_still_what_the_service_says():
    source = (ROOT / "src" / "service.rs").read_text()
    seconds = [int(re.search(rf"const {name}: Duration = Duration::from_secs\((\d+)\)", source)[1])
               for name in ("STOP_TIMEOUT", "SANDBOX_TIMEOUT")]
    assert sum(seconds) == STOP_SECONDS


def test_one_thing_at_most_scales_the_pods(release):
    scalers = release.of("HorizontalPodAutoscaler") + release.of("ScaledObject")
    by = release.values["autoscaling"]["by"]
    assert [thing["kind"] for thing in scalers] == {"none": [], "cpu": ["HorizontalPodAutoscaler"], "queue": ["ScaledObject"]}[by]
    # With one of them a number here would undo its work at each upgrade.
    assert ("replicas" in release.server["spec"]) == (by == "none")
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"]["name"] == release.server["metadata"]["name"]


def test_many_pods_never_share_a_volume(release):
    shared = bool(release.values["database"]["existingSecret"] and release.values["artifacts"]["url"])
    (data,) = [volume for volume in release.pod["volumes"] if volume["name"] == "data"]
    strategy = release.server["spec"]["strategy"]
    if shared:
        assert "emptyDir" in data and not release.of("PersistentVolumeClaim")
        assert strategy["type"] == "RollingUpdate" and strategy["rollingUpdate"]["maxUnavailable"] == 0
    else:
        assert strategy == {"type": "Recreate"} and release.server["spec"]["replicas"] == 1
        claim = data["persistentVolumeClaim"]["claimName"]
        own = [thing["metadata"]["name"] for thing in release.of("PersistentVolumeClaim")]
        assert own == ([] if claim == "mine" else [claim])


def test_the_default_number_of_pods_is_what_storage_allows():
    assert rendered_case("embedded").server["spec"]["replicas"] == 1
    assert rendered_case("database without object storage").server["spec"]["replicas"] == 1
    assert rendered_case("shared").server["spec"]["replicas"] == 2
    assert rendered_case("three replicas").server["spec"]["replicas"] == 3


def test_only_many_pods_have_a_disruption_budget(release):
    budgets = [thing for thing in release.of("PodDisruptionBudget") if component(thing) == "server"]
    many = release.values["autoscaling"]["by"] != "none" or release.server["spec"]["replicas"] > 1
    assert len(budgets) == many


def test_selectors_select_pods_of_ours(release):
    labels = {component(thing): labels for thing, labels, _ in release.pods()}
    for thing in release.objects:
        selector = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(thing["kind"])
        if selector:
            chosen = [name for name, these in labels.items() if selects(selector(thing["spec"]), these)]
            assert chosen == [component(thing)], (thing["kind"], thing["metadata"]["name"])
    for thing, these, spec in release.pods():
        for constraint in spec.get("topologySpreadConstraints", []):
            assert selects(constraint["labelSelector"]["matchLabels"], these)


def test_a_selector_does_not_change_with_versions_and_labels():
    # A Deployment's selector cannot be changed, so an upgrade that did would fail.
    changed = Rendered(SHARED | {"commonLabels": {"team": "x"}, "podLabels": {"a": "b"}, "image": {"tag": "9.9.9"}})
    assert changed.server["spec"]["selector"] == rendered_case("shared").server["spec"]["selector"]


def container_ports(release, name):
    (spec,) = [spec for thing, _, spec in release.pods() if component(thing) == name]
    return {port["name"]: port["containerPort"] for container in spec["containers"] for port in container.get("ports", [])}


def test_ports_are_those_of_the_containers(release):
    for service in release.of("Service"):
        ports = container_ports(release, component(service))
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
    for policy in release.of("NetworkPolicy"):
        ports = container_ports(release, component(policy))
        for rule in policy["spec"]["ingress"]:
            assert all(port["port"] in ports for port in rule["ports"])
        for rule in policy["spec"]["egress"]:
            # By name they are the other side's: Envoy's way to the service.
            names = [port["port"] for port in rule["ports"] if isinstance(port["port"], str)]
            assert all(name in container_ports(release, "server") for name in names)
    ports = container_ports(release, "server")
    assert ports == {"grpc": 7400, "admin": 7401}
    # Plaintext also with TLS: the kubelet's gRPC probes know no other. The last one's name stays SERVING while the service drains.
    liveness = re.search(r'const LIVENESS: &str = "(\w+)"', (ROOT / "src" / "drain.rs").read_text())[1]
    for probe, service in [("startupProbe", {}), ("readinessProbe", {}), ("livenessProbe", {"service": liveness})]:
        assert release.container[probe]["grpc"] == {"port": ports["admin"]} | service


@pytest.mark.parametrize("case, peers", [
    ("shared", None), ("traces", []),
    ("everything", [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]),
])
def test_traces_get_out_where_they_are_sent(case, peers):
    release = rendered_case(case)
    (policy,) = [policy for policy in release.of("NetworkPolicy") if component(policy) == "server"]
    rules = [rule for rule in policy["spec"]["egress"] if {"port": 4317} in rule["ports"]]
    assert [rule.get("to", []) for rule in rules] == ([] if peers is None else [peers])


def test_routes_lead_to_a_service_of_ours(release):
    ports = {service["metadata"]["name"]: service["spec"]["ports"] for service in release.of("Service")}
    entry = release.server["metadata"]["name"] + ("-envoy" if release.values["envoy"]["enabled"] else "")
    for ingress in release.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                assert backend["name"] == entry
                assert backend["port"]["name"] in [port["name"] for port in ports[entry]]
    for route in release.of("GRPCRoute"):
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            assert backend["name"] == entry and backend["port"] in [port["port"] for port in ports[entry]]
    for monitor in release.of("ServiceMonitor"):
        found = [
            service for service in release.of("Service")
            if selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
            and any(port["name"] == "admin" for port in service["spec"]["ports"])
        ]
        assert len(found) == 1, "each pod is to be scraped once"
        assert monitor["spec"]["namespaceSelector"]["matchNames"] == ["apps"]


def test_mounts_have_volumes_and_volumes_have_sources(release):
    maps = {thing["metadata"]["name"]: thing["data"] for thing in release.of("ConfigMap")}
    for thing, _, spec in release.pods():
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounted = [mount for container in spec["containers"] for mount in container.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounted} == set(volumes), "a volume that nobody mounts, or the other way round"
        paths = [mount["mountPath"] for mount in mounted]
        assert len(paths) == len(set(paths))
        # A single file is never updated when its Secret or ConfigMap changes.
        assert not any("subPath" in mount for mount in mounted)
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "emptyDir" in volume and volume["name"] != "more":
                assert volume["emptyDir"]["sizeLimit"], "an emptyDir without end fills the node's disk"
    config = release.container["args"][release.container["args"].index("--config") + 1]
    (directory,) = [mount["mountPath"] for mount in release.container["volumeMounts"] if mount["name"] == "config"]
    assert config.removeprefix(directory + "/") in maps[release.server["metadata"]["name"]]


def test_secrets_are_named_and_never_made_or_copied(release):
    assert not release.of("Secret")
    named = set(re.findall(r"(?:secretName|secretKeyRef)[\"']?: ?\{?(?:name: )?([a-z0-9-]+)", release.text))
    assert named and named <= SECRETS, named
    for thing in release.of("ConfigMap"):
        for text in thing["data"].values():
            assert not re.search(r"postgres(ql)?://|AWS_SECRET|password|BEGIN [A-Z ]*PRIVATE", text)
    for thing, _, spec in release.pods():
        for container in spec["containers"]:
            given = " ".join(container.get("args", []))
            assert "token" not in given and "postgres" not in given, "everybody on the node reads arguments"
            for variable in container.get("env", []):
                if re.search("TOKEN|KEY|SECRET|DATABASE_URL", variable["name"]):
                    assert "valueFrom" in variable, variable["name"]


def test_pods_need_nothing_of_kubernetes(release):
    for thing, _, spec in release.pods():
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec.get("volumes", []):
            assert "hostPath" not in volume
        for container in spec["containers"]:
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["memory"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"].get("privileged") is not True
            assert re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"]), "an image without a version"
    for account in release.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_migration_needs_nothing_that_is_made_after_it(release):
    jobs = release.of("Job")
    database = release.values["database"]
    assert len(jobs) == bool(database["existingSecret"] and database["migrationJob"])
    for job in jobs:
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        spec = job["spec"]["template"]["spec"]
        assert "serviceAccountName" not in spec and not [volume for volume in spec["volumes"] if "configMap" in volume]
        (container,) = spec["containers"]
        assert container["args"] == ["migrate"]
        assert [variable["name"] for variable in container["env"]] == ["CHATFN_DATABASE_URL"]
        assert container["image"] == release.container["image"]


def test_helm_test_asks_where_callers_ask():
    (plain,) = rendered_case("shared").of("Pod")[0]["spec"]["containers"]
    assert plain["args"] == ["apps", "list", "--address", "http://rel-chat-functions:7400"]
    (through,) = rendered_case("envoy").of("Pod")[0]["spec"]["containers"]
    assert through["args"][-1] == "http://rel-chat-functions-envoy:7400"
    (tls,) = rendered_case("tls").of("Pod")[0]["spec"]["containers"]
    assert tls["command"][-1] == "http://rel-chat-functions-pods:7401/readyz"


def test_other_settings_are_a_rollout_and_the_same_are_none():
    def checksum(values):
        return Rendered(values).server["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(SHARED) == checksum(SHARED | {"replicas": 7})
    assert checksum(SHARED) != checksum(SHARED | {"config": {"waiting_max": 7}})


def test_keda_reads_the_url_where_the_pods_do():
    release = rendered_case("autoscaling by queue")
    (authentication,) = release.of("TriggerAuthentication")
    (reference,) = authentication["spec"]["secretTargetRef"]
    assert (reference["name"], reference["key"]) == ("database", "url")
    triggers = release.of("ScaledObject")[0]["spec"]["triggers"]
    assert [trigger["type"] for trigger in triggers] == ["postgresql", "cpu"]
    assert triggers[0]["authenticationRef"]["name"] == authentication["metadata"]["name"]


def test_keda_asks_for_columns_that_are_there():
    query = rendered_case("autoscaling by queue").of("ScaledObject")[0]["spec"]["triggers"][0]["metadata"]["query"]
    schema = "".join(path.read_text() for path in sorted((ROOT / "migrations" / "postgres").glob("*.sql")))
    table = re.search(r"CREATE TABLE events \((.*?)\n\);", schema, re.S)[1]
    for column in ("state", "due_at"):
        assert column in query and re.search(rf"^\s+{column} BIGINT", table, re.M)
    assert "0 QUEUED, 1 RUNNING, 2 DONE" in table, "what `state < 2` is"


def test_notes_tell_what_is_missing_and_no_secret(release):
    values = release.values
    told = {
        "clear text": not values["encryptionKeys"]["existingSecret"] or not values["tls"]["existingSecret"],
        "One pod": not (values["database"]["existingSecret"] and values["artifacts"]["url"]),
        "trustedProxies": (values["envoy"]["enabled"] or values["ingress"]["enabled"]) and not values["trustedProxies"],
        "nothing else keeps functions": values["isolation"]["profile"] == "restricted" and not values["networkPolicy"]["enabled"],
    }
    assert {text: text in release.notes for text in told} == told
    assert "\n\n\n" not in release.notes


def test_the_dashboard_is_in_a_configmap(release):
    found = [thing for thing in release.of("ConfigMap") if "chatfn.json" in thing["data"]]
    assert len(found) == release.values["metrics"]["dashboard"]
    for thing in found:
        assert thing["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(thing["data"]["chatfn.json"]) == json.loads((CHART / "dashboards" / "chatfn.json").read_text())


def test_the_alerts_are_in_a_rule_as_they_are(release):
    found = release.of("PrometheusRule")
    assert len(found) == release.values["metrics"]["prometheusRule"]
    for thing in found:
        assert thing["metadata"]["labels"]["release"] == "prometheus"
        # Helm reads `{{ $labels.app }}` as Prometheus would not.
        assert thing["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text()) and "{{ $labels.app }}" in str(thing)


def test_a_token_is_all_that_an_install_needs():
    assert set(TOKEN) == {"operatorToken"} and Rendered(TOKEN).objects
    assert EVERYTHING["envoy"]["enabled"]
