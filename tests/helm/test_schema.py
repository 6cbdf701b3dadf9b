"""The schema is closed, and values.yaml, schema, README and templates know the same values."""

import copy
import json

import pytest
import yaml

from cases import EVERYTHING, SHARED, TOKEN
from conftest import CHART, ROOT, Rendered
from values_table import BEGIN, END, documented, leaves, table

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TEXT = (CHART / "values.yaml").read_text()
DEFAULTS = yaml.safe_load(TEXT)
PATHS = [path for path, _ in leaves(DEFAULTS, [path for _, path, _ in documented(TEXT)])]
# Maps with names of others' choosing: labels, settings, what Kubernetes defines.
FREE = {"global", "affinity", "config"}


def resolved(schema):
    if "$ref" in schema:
        return resolved(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    return schema


def at(path):
    schema = SCHEMA
    for key in path:
        schema = resolved(schema)["properties"][key]
    return schema


def open_objects(schema, path=()):
    """Those that take any key."""
    schema = resolved(schema)
    if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
        yield path
    for key, inner in schema.get("properties", {}).items():
        if inner is not False:
            yield from open_objects(inner, (*path, key))


def test_the_schema_is_closed_but_for_free_maps():
    assert {path[0] for path in open_objects(SCHEMA)} == {"global", "affinity"}
    assert resolved(at(["config"]))["additionalProperties"] is False, "settings have names of a form"


def test_schema_and_values_have_the_same_keys():
    def compare(schema, values, path):
        schema = resolved(schema)
        if not isinstance(values, dict) or "properties" not in schema or path[:1] == ("config",):
            return
        known = {key for key, inner in schema["properties"].items() if inner is not False} - ({"global"} if not path else set())
        # Resources are a free map that must have memory.
        if path[-1:] not in [("limits",), ("requests",)]:
            assert known == set(values), path
        for key, inner in values.items():
            compare(schema["properties"].get(key, {}), inner, (*path, key))

    compare(SCHEMA, DEFAULTS, ())


def test_the_schema_refers_to_what_is_there_and_has_nothing_left_over():
    text = json.dumps(SCHEMA)
    for name in SCHEMA["$defs"]:
        assert f"#/$defs/{name}" in text, name
    assert not SCHEMA["additionalProperties"]


def test_the_readme_has_the_table_of_values():
    readme = (CHART / "README.md").read_text()
    current = readme.split(BEGIN)[1].split(END)[0]
    assert current == table(), "run: scripts/helm-readme"


def test_the_chart_is_of_the_version_that_it_installs():
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = [line.split('"')[1] for line in (ROOT / "Cargo.toml").read_text().splitlines() if line.startswith("version = ")]
    assert metadata["appVersion"] == version


# Another value for each that the schema bounds; the others are found by their type.
OTHERS = {
    "image.digest": "sha256:" + "1" * 64, "envoy.image.digest": "sha256:" + "1" * 64, "image.pullPolicy": "Never",
    "image.pullSecrets": [{"name": "other"}], "autoscaling.by": "cpu", "artifacts.url": "gs://other", "isolation.profile": "userns",
    "isolation.require": ["seccomp"], "clusterCidrs": ["192.0.2.0/24"], "config": {"waiting_max": 7}, "oidc.issuer": "https://other",
    "oidc.jwksUrl": "https://other/keys", "artifacts.s3.endpoint": "https://other", "traces.otlpEndpoint": "http://other:4317",
    "traces.sampleRatio": 0.5,
    "trustedProxies": ["192.0.2.0/24"], "service.type": "NodePort", "ingress.hosts": ["other.example"], "gateway.hostnames": ["other.example"],
    "gateway.parentRefs": [{"name": "other"}], "networkPolicy.egress.web.except": ["10.0.0.0/8"], "networkPolicy.egress.web.ports": [8443],
    "metrics.interval": "7s", "topologySpread": "ScheduleAnyway", "resources.requests": {"cpu": "7", "memory": "7Gi"},
    "resources.limits": {"memory": "7Gi"}, "envoy.resources.requests": {"cpu": "7"}, "envoy.resources.limits": {"memory": "7Gi"},
    "replicas": 7, "drain.delaySeconds": 7, "database.connectionsMax": 7, "persistence.size": "7Gi", "cache.size": "7Gi", "extraEnv": [{"name": "OTHER", "value": "x"}],
    "affinity": {"podAffinity": {}}, "networkPolicy.enabled": False, "envoy.enabled": False, "gateway.enabled": False, "ingress.enabled": False,
    "podDisruptionBudget.maxUnavailable": "25%", "persistence.storageClass": "fast",
}
# Of no effect in the case with everything on.
BASES = {
    "replicas": SHARED, "persistence.existingClaim": TOKEN, "persistence.size": TOKEN, "persistence.storageClass": TOKEN,
    "serviceAccount.name": SHARED, "nameOverride": SHARED, "isolation.singleTenant": SHARED, "isolation.writableCgroups": SHARED | {
        "isolation": {"runtimeClassName": "x"}},
}


def other(path, default):
    name = ".".join(path)
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, str):
        return "other"
    return [{"name": "other"}] if isinstance(default, list) else {"other": "yes"}


def everything_rendered(values):
    release = Rendered(values)
    return release.text + release.notes


BASE_TEXTS = {name: everything_rendered(base) for name, base in {"": EVERYTHING, **BASES}.items()}


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_every_value_has_an_effect(path):
    name = ".".join(path)
    base = BASES.get(name, EVERYTHING)
    changed = copy.deepcopy(Rendered(base).values)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other(path, inner.get(path[-1]))  # Helm leaves out what is null.
    assert everything_rendered(changed) != BASE_TEXTS[name if name in BASES else ""]
