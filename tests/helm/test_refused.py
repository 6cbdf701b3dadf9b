"""Values that cannot work are refused before anything reaches a cluster, with the key's name in the message."""

import helm_python
import pytest

from cases import MUTUAL, SHARED, TOKEN
from conftest import Rendered

REFUSED = [
    # Misspelt or in the wrong place.
    ({"replcas": 2}, ["'replcas'"]),
    ({"database": {"url": "postgres://user:password@host/db"}}, ["/database", "'url'"]),
    ({"operatorToken": {"token": "0123456789abcdef"}}, ["/operatorToken", "'token'"]),
    ({"artifacts": {"s3": {"secretAccessKey": "x"}}}, ["/artifacts/s3", "'secretAccessKey'"]),
    ({"envoy": {"image": {"name": "x"}}}, ["/envoy/image", "'name'"]),
    ({"networkPolicy": {"egress": {"database": {"cidr": "10.0.0.0/8"}}}}, ["/networkPolicy/egress/database", "'cidr'"]),
    # Of another type or out of bounds.
    ({"replicas": 0}, ["/replicas"]),
    ({"replicas": "2"}, ["/replicas"]),
    ({"drain": {"timeoutSeconds": "30s"}}, ["/drain/timeoutSeconds"]),
    ({"drain": {"delaySeconds": 0}}, ["/drain/delaySeconds"]),
    ({"memoryBudgetPercent": 100}, ["/memoryBudgetPercent"]),
    ({"resources": {"limits": {"memory": 4294967296}}}, ["/resources/limits/memory"]),
    ({"resources": {"limits": {"memory": "4 GB"}}}, ["/resources/limits/memory"]),
    ({"resources": {"limits": {"memory": None}}}, ["/resources/limits", "memory"]),
    ({"isolation": {"profile": "none"}}, ["/isolation/profile", "'restricted'"]),
    ({"isolation": {"require": ["memry"]}}, ["/isolation/require/0"]),
    ({"image": {"digest": "sha256:abc"}}, ["/image/digest"]),
    ({"database": {"existingSecret": "Database"}}, ["/database/existingSecret"]),
    ({"artifacts": {"url": "minio:9000/bucket"}}, ["/artifacts/url"]),
    ({"clusterCidrs": ["203.0.113.7"]}, ["/clusterCidrs/0"]),
    ({"trustedProxies": ["10.244.0.1"]}, ["/trustedProxies/0"]),
    ({"database": {"connectionsMax": 1}}, ["/database/connectionsMax"]),
    ({"artifacts": {"url": "s3://bucket?region=x"}}, ["/artifacts/url"]),
    ({"oidc": {"issuer": "http://login.example", "audience": "chatfn"}}, ["/oidc/issuer"]),
    ({"tls": {"clientCa": {"optional": "yes"}}}, ["/tls/clientCa/optional"]),
    ({"metrics": {"prometheusRule": "yes"}}, ["/metrics/prometheusRule"]),
    ({"traces": {"sampleRatio": 2}}, ["/traces/sampleRatio"]),
    ({"traces": {"otlpEndpoint": "otel:4317"}}, ["/traces/otlpEndpoint"]),
    ({"traces": {"otlpEndpoint": "http://user:secret@otel:4317"}}, ["/traces/otlpEndpoint"]),
    ({"topologySpread": "always"}, ["/topologySpread"]),
    ({"service": {"port": 0}}, ["/service/port"]),
    ({"podAnnotations": {"on": True}}, ["/podAnnotations/on"]),
    ({"metrics": {"interval": "often"}}, ["/metrics/interval"]),
    # What the chart sets itself.
    *[({"config": {name: "x"}}, [f"/config/{name}"]) for name in ["listen", "database_url", "isolation", "drain_delay", "drain_timeout", "tls", "traces"]],
    ({"config": {"Idle-TTL": "5m"}}, ["/config", "'Idle-TTL'"]),
    # Half of something.
    ({"ingress": {"enabled": True}}, ["/ingress/hosts"]),
    ({"gateway": {"enabled": True}}, ["/gateway/parentRefs"]),
    ({"oidc": {"issuer": "https://login.example"}}, ["/oidc/audience"]),
    # Two at once: there is one key for who scales.
    ({"autoscaling": {"by": "cpu,queue"}}, ["/autoscaling/by", "'cpu'", "'queue'"]),
    ({"autoscaling": {"cpu": True, "queue": True}}, ["/autoscaling", "'cpu'", "'queue'"]),
]


@pytest.mark.parametrize("values, told", REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_the_schema_refuses(values, told):
    with pytest.raises(helm_python.HelmValuesError) as refused:
        Rendered(SHARED | values)
    assert all(text in str(refused.value) for text in told), refused.value


CONTRADICTIONS = [
    ({"operatorToken": {"existingSecret": ""}}, ["operatorToken.existingSecret", "kubectl create secret"]),
    (TOKEN | {"replicas": 2}, ["replicas:", "database.existingSecret", "artifacts.url"]),
    (TOKEN | {"replicas": 2, "database": {"existingSecret": "database"}}, ["replicas:", "artifacts.url"]),
    (TOKEN | {"replicas": 2, "artifacts": {"url": "s3://bucket"}}, ["replicas:", "database.existingSecret"]),
    (TOKEN | {"autoscaling": {"by": "cpu"}}, ["autoscaling.by", "database.existingSecret"]),
    (TOKEN | {"autoscaling": {"by": "queue"}}, ["autoscaling.by", "database.existingSecret"]),
    (SHARED | {"autoscaling": {"by": "cpu", "minReplicas": 5, "maxReplicas": 4}}, ["autoscaling.minReplicas"]),
    (SHARED | {"tls": {"clientCa": {"existingSecret": "ca"}}}, ["tls.clientCa.existingSecret", "tls.existingSecret"]),
    (SHARED | MUTUAL | {"envoy": {"enabled": True}}, ["envoy.clientCertificate.existingSecret"]),
    (SHARED | {"isolation": {"writableCgroups": True}}, ["isolation.writableCgroups", "isolation.runtimeClassName"]),
    (SHARED | {"networkPolicy": {"egress": {"web": {"enabled": False}}}}, ["networkPolicy.egress.objectStorage.to"]),
]


@pytest.mark.parametrize("values, told", CONTRADICTIONS, ids=[str(told) for _, told in CONTRADICTIONS])
def test_the_chart_refuses(values, told):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        Rendered(values)
    assert all(text in str(refused.value) for text in told), refused.value


def test_what_is_refused_is_right_but_for_one_thing():
    # Else the tests above might see another mistake than theirs.
    assert Rendered(SHARED).objects and Rendered(TOKEN).objects
