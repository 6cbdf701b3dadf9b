{{/* What the schema cannot say: values that are right one by one and cannot work together. Each message names the key. */}}
{{- define "chatfn.check" -}}
{{- $values := .Values -}}
{{- if not $values.operatorToken.existingSecret -}}
{{- fail "operatorToken.existingSecret: name a Secret with the operator's token, for the service listens for others than itself: kubectl create secret generic chatfn --from-literal=token=\"$(openssl rand -hex 32)\"" -}}
{{- end -}}
{{- if not (include "chatfn.shared" .) -}}
{{- if ne $values.autoscaling.by "none" -}}
{{- fail "autoscaling.by: many pods need a database and artifacts that they share: set database.existingSecret and artifacts.url, or autoscaling.by=none" -}}
{{- end -}}
{{- if gt (include "chatfn.replicas" . | int) 1 -}}
{{- fail "replicas: more than one pod need a database and artifacts that they share: set database.existingSecret and artifacts.url, or replicas=1" -}}
{{- end -}}
{{- end -}}
{{- if gt (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas: it is greater than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $values.tls.clientCa.existingSecret (not $values.tls.existingSecret) -}}
{{- fail "tls.clientCa.existingSecret: client certificates take TLS: set tls.existingSecret" -}}
{{- end -}}
{{- if and $values.envoy.enabled $values.tls.clientCa.existingSecret (not $values.envoy.clientCertificate.existingSecret) -}}
{{- fail "envoy.clientCertificate.existingSecret: with tls.clientCa Envoy needs a certificate of its own to be let in" -}}
{{- end -}}
{{- if and $values.isolation.writableCgroups (not $values.isolation.runtimeClassName) -}}
{{- fail "isolation.writableCgroups: cgroups are writable by a RuntimeClass: set isolation.runtimeClassName" -}}
{{- end -}}
{{- $egress := $values.networkPolicy.egress -}}
{{- if and $values.networkPolicy.enabled $values.artifacts.url (not $egress.web.enabled) (not $egress.objectStorage.to) -}}
{{- fail "networkPolicy.egress.objectStorage.to: without networkPolicy.egress.web nothing leads to artifacts.url: say where it is" -}}
{{- end -}}
{{- end -}}
