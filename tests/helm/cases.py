"""The values that the chart is tested with: what people install, and everything at once."""

SECRETS = {
    "operator-token", "database", "s3", "gcs", "keys", "tls", "client-ca", "envoy-client", "npm", "registry", "ingress-tls",
}
TOKEN = {"operatorToken": {"existingSecret": "operator-token"}}
SHARED = {
    **TOKEN,
    "database": {"existingSecret": "database", "connectionsMax": 20},
    "artifacts": {"url": "s3://artifacts/chatfn", "s3": {"existingSecret": "s3", "region": "eu-central-1"}},
}
TLS = {"tls": {"existingSecret": "tls"}}
MUTUAL = {"tls": {"existingSecret": "tls", "clientCa": {"existingSecret": "client-ca"}}}
OPTIONAL = {"tls": {"existingSecret": "tls", "clientCa": {"existingSecret": "client-ca", "optional": True}}}
ENVOY = {"envoy": {"enabled": True, "clientCertificate": {"existingSecret": "envoy-client"}}}

EVERYTHING = {
    **SHARED,
    **MUTUAL,
    **ENVOY,
    "fullnameOverride": "everything",
    "image": {"repository": "registry.example/chatfn", "tag": "1.2.3", "pullPolicy": "Always", "pullSecrets": [{"name": "registry"}]},
    "autoscaling": {"by": "queue", "minReplicas": 3, "maxReplicas": 30},
    "artifacts": {
        "url": "s3://artifacts/chatfn",
        "s3": {"existingSecret": "s3", "region": "eu-central-1", "endpoint": "http://minio.storage:9000"},
        "gcs": {"existingSecret": "gcs"},
    },
    "encryptionKeys": {"existingSecret": "keys"},
    "oidc": {"issuer": "https://login.example", "audience": "chatfn", "jwksUrl": "https://login.example/keys",
             "scopesClaim": "roles", "appClaim": "tenant"},
    "npm": {"existingSecret": "npm"},
    "serviceAccount": {"name": "runner", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
    "isolation": {"profile": "hardened", "runtimeClassName": "cgroup-writable", "writableCgroups": True},
    "clusterCidrs": ["203.0.113.0/24", "2001:db8::/32"],
    "config": {
        "rate_per_app": 1_000_000,
        "rate_burst_per_app": 1_000_000,
        "auth_failures_per_minute": 60,
        "log_level": "chatfn=debug,warn",
        "trigger_types": [{"name": "OrderPlaced", "blocking": True, "schema": {"type": "object", "required": ["order"]}}],
        "egress": {"deny": ["198.51.100.0/24"], "dedicated": {"shop.eu": {"allow": [{"network": "10.9.0.0/16", "ports": [443]}]}}},
    },
    "drain": {"timeoutSeconds": 120, "delaySeconds": 15},
    "traces": {"otlpEndpoint": "http://otel.observability:4317", "sampleRatio": 0.1},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "trustedProxies": ["10.244.0.0/16", "fd00:10:244::/56"],
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"lb": "internal"}},
    "ingress": {
        "enabled": True, "className": "nginx", "hosts": ["functions.example"],
        "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "GRPCS"},
        "tls": [{"secretName": "ingress-tls", "hosts": ["functions.example"]}],
    },
    "gateway": {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}], "hostnames": ["functions.example"]},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"chat": "yes"}}}],
        "metricsClients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": {
            "database": {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]},
            "objectStorage": {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}}], "port": 9000},
            "traces": {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]},
            "extra": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 443}]}],
        },
    },
    "metrics": {
        "serviceMonitor": True, "serviceMonitorLabels": {"release": "prometheus"}, "dashboard": True,
        "prometheusRule": True, "prometheusRuleLabels": {"release": "prometheus"},
    },
    "topologySpread": "DoNotSchedule",
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "nodeSelector": {"pool": "functions"},
    "tolerations": [{"key": "functions", "operator": "Exists"}],
    "priorityClassName": "high",
    "commonLabels": {"team": "chat"},
    "podLabels": {"mesh": "off"},
    "podAnnotations": {"note": "x"},
}

CASES = {
    "embedded": TOKEN,
    "embedded on a claim of one's own": {**TOKEN, "persistence": {"existingClaim": "mine"}},
    "database without object storage": {**TOKEN, "database": {"existingSecret": "database"}},
    "shared": SHARED,
    "three replicas": {**SHARED, "replicas": 3},
    "one replica, shared": {**SHARED, "replicas": 1},
    "google": {**SHARED, "artifacts": {"url": "gs://artifacts", "gcs": {"existingSecret": "gcs"}}},
    "autoscaling by cpu": {**SHARED, "autoscaling": {"by": "cpu"}},
    "autoscaling by queue": {**SHARED, "autoscaling": {"by": "queue"}},
    "tls": {**SHARED, **TLS},
    "mtls": {**SHARED, **MUTUAL},
    "mtls, optional": {**SHARED, **OPTIONAL},
    "envoy": {**SHARED, **ENVOY},
    "envoy, tls": {**SHARED, **ENVOY, **TLS},
    "envoy, mtls": {**SHARED, **ENVOY, **MUTUAL},
    "envoy, mtls, optional": {**SHARED, **ENVOY, **OPTIONAL},
    "ingress": {**SHARED, "ingress": EVERYTHING["ingress"]},
    "gateway": {**SHARED, "gateway": EVERYTHING["gateway"]},
    "gateway to envoy": {**SHARED, **ENVOY, "gateway": EVERYTHING["gateway"]},
    "restricted": {**SHARED, "isolation": {"profile": "restricted"}},
    "userns": {**SHARED, "isolation": {"profile": "userns"}},
    "hardened": {**SHARED, "isolation": {"profile": "hardened"}},
    "hardened, writable cgroups": {**SHARED, "isolation": EVERYTHING["isolation"]},
    "root": {**SHARED, "isolation": {"profile": "root"}},
    "no network policy": {**SHARED, "networkPolicy": {"enabled": False}},
    "no web": {**SHARED, "networkPolicy": {"egress": {**EVERYTHING["networkPolicy"]["egress"], "web": {"enabled": False}}}},
    "traces": {**SHARED, "traces": {"otlpEndpoint": "https://otel.example:4317"}},
    "metrics": {**SHARED, "metrics": EVERYTHING["metrics"]},
    "no migration job": {**SHARED, "database": {"existingSecret": "database", "migrationJob": False}},
    "no service account": {**SHARED, "serviceAccount": {"create": False}},
    "a digest": {**SHARED, "image": {"repository": "registry.example/chatfn", "digest": "sha256:" + "0" * 64}},
    "everything": EVERYTHING,
}
