{{/* Names. The suffixes (`-envoy-config`…) fit behind 45 characters, and with the rest stay below the 63 of a label. */}}
{{- define "chatfn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a selector selects by; never changes in a release's life. Takes (list $ COMPONENT). */}}
{{- define "chatfn.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Of every object. Takes (list $ COMPONENT). */}}
{{- define "chatfn.labels" -}}
{{- $root := index . 0 -}}
{{ include "chatfn.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{/* A digest wins over a tag. Takes (list IMAGE DEFAULT-TAG). */}}
{{- define "chatfn.imageOf" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "chatfn.image" -}}
{{- include "chatfn.imageOf" (list .Values.image .Chart.AppVersion) -}}
{{- end -}}

{{- define "chatfn.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "chatfn.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* "true" if pods share all that is durable, so that there may be many. */}}
{{- define "chatfn.shared" -}}
{{- if and .Values.database.existingSecret .Values.artifacts.url -}}true{{- end -}}
{{- end -}}

{{- define "chatfn.replicas" -}}
{{- $default := ternary 2 1 (eq "true" (include "chatfn.shared" .)) -}}
{{- if kindIs "invalid" .Values.replicas -}}{{ $default }}{{- else -}}{{ int .Values.replicas }}{{- end -}}
{{- end -}}

{{/* The most pods that there may be. */}}
{{- define "chatfn.replicasMax" -}}
{{- if eq .Values.autoscaling.by "none" -}}{{ include "chatfn.replicas" . }}{{- else -}}{{ int .Values.autoscaling.maxReplicas }}{{- end -}}
{{- end -}}

{{/* The Service that callers use. */}}
{{- define "chatfn.entry" -}}
{{- include "chatfn.fullname" . -}}{{- if .Values.envoy.enabled -}}-envoy{{- end -}}
{{- end -}}

{{- define "chatfn.drainDelaySeconds" -}}
{{- $given := .Values.drain.delaySeconds -}}
{{- if kindIs "invalid" $given -}}{{ ternary 40 5 .Values.envoy.enabled }}{{- else -}}{{ int $given }}{{- end -}}
{{- end -}}

{{/* Of the drain, its end (the service's own limit is ten seconds and two for the broker) and a margin for the kubelet. */}}
{{- define "chatfn.gracePeriod" -}}
{{- add (include "chatfn.drainDelaySeconds" . | int) .Values.drain.timeoutSeconds 12 5 -}}
{{- end -}}

{{/* Bytes of a quantity (`4Gi`), less what PERCENT leaves. Takes (list QUANTITY PERCENT). */}}
{{- define "chatfn.bytes" -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := regexFind "[A-Za-z]*$" (index . 0) -}}
{{- $number := float64 (trimSuffix $unit (index . 0)) -}}
{{- divf (mulf $number (get $units $unit) (float64 (index . 1))) 100.0 | floor | int64 -}}
{{- end -}}

{{/* Pods that only talk: no privileges, nothing writable. As Pod Security "restricted" wants it. */}}
{{- define "chatfn.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
# Files keep their modes: the data directory is the service's alone.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "chatfn.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* No pod of ours talks to Kubernetes, and variables of other Services (`CHATFN_PORT=tcp://…`) are noise. */}}
{{- define "chatfn.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Spread by zone and node. Takes (list $ COMPONENT). */}}
{{- define "chatfn.spread" -}}
{{- $root := index . 0 -}}
{{- if ne $root.Values.topologySpread "none" -}}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: {{ $root.Values.topologySpread }}
    labelSelector:
      matchLabels:
        {{- include "chatfn.selectorLabels" $ | nindent 8 }}
    # Each rollout by itself: pods of the old one are about to go.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "chatfn.databaseEnv" -}}
- name: CHATFN_DATABASE_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}
{{- end -}}
