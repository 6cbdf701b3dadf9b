{{/* chatfn.toml, from values. */}}

{{/* A value. JSON's texts, numbers and lists are TOML's too; tables differ. (`toToml` would write large numbers as 1e+06.) */}}
{{- define "chatfn.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ include "chatfn.tomlKey" $key }} = {{ include "chatfn.toml" (get $ $key) }}{{ end -}} }
{{- else if kindIs "slice" . -}}
[{{- range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "chatfn.toml" $item }}{{ end -}}]
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{- define "chatfn.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* All settings, as JSON: what `config` says, under what follows from other values. */}}
{{- define "chatfn.settings" -}}
{{- $values := .Values -}}
{{- $settings := mergeOverwrite (dict "log_format" "json") (deepCopy $values.config) -}}
{{- $_ := set $settings "listen" "0.0.0.0:7400" -}}
{{- $_ := set $settings "admin_listen" "0.0.0.0:7401" -}}
{{- /* Below the volume's root, which the service does not own: it makes this one, for itself alone. */ -}}
{{- $_ := set $settings "data_dir" "/var/lib/chatfn/data" -}}
{{- $_ := set $settings "operator_token_file" "/etc/chatfn/operator-token/token" -}}
{{- $_ := set $settings "memory_budget_bytes" (include "chatfn.bytes" (list $values.resources.limits.memory $values.memoryBudgetPercent) | int64) -}}
{{- $_ := set $settings "drain_delay" (printf "%ss" (include "chatfn.drainDelaySeconds" .)) -}}
{{- $_ := set $settings "drain_timeout" (printf "%ds" (int $values.drain.timeoutSeconds)) -}}
{{- $_ := set $settings "isolation" (include "chatfn.isolation" . | fromJson) -}}
{{- if include "chatfn.startsAsRoot" . -}}
{{- $_ := set $settings "user" "1000:1000" -}}
{{- end -}}
{{- $egress := default dict $settings.egress -}}
{{- $_ := set $egress "deny" (concat $values.clusterCidrs (default list $egress.deny) | uniq) -}}
{{- $_ := set $settings "egress" $egress -}}
{{- with $values.artifacts.url -}}
{{- $_ := set $settings "artifacts" . -}}
{{- end -}}
{{- if include "chatfn.shared" . -}}
{{- $_ := set $settings "artifacts_cache_bytes_max" (include "chatfn.bytes" (list $values.cache.size 50) | int64) -}}
{{- end -}}
{{- with $values.database.connectionsMax -}}
{{- $_ := set $settings "database_connections_max" . -}}
{{- end -}}
{{- with $values.trustedProxies -}}
{{- $_ := set $settings "trusted_proxies" . -}}
{{- end -}}
{{- if $values.encryptionKeys.existingSecret -}}
{{- $_ := set $settings "encryption_keys_file" "/etc/chatfn/encryption-keys/keys" -}}
{{- end -}}
{{- if $values.npm.existingSecret -}}
{{- $_ := set $settings "npm_userconfig" "/etc/chatfn/npm/npmrc" -}}
{{- end -}}
{{- if $values.tls.existingSecret -}}
{{- $tls := dict "cert_file" "/etc/chatfn/tls/tls.crt" "key_file" "/etc/chatfn/tls/tls.key" -}}
{{- if $values.tls.clientCa.existingSecret -}}
{{- $_ := set $tls "client_ca_file" "/etc/chatfn/client-ca/ca.crt" -}}
{{- $_ := set $tls "client_auth" (ternary "optional" "required" $values.tls.clientCa.optional) -}}
{{- end -}}
{{- $_ := set $settings "tls" $tls -}}
{{- end -}}
{{- if $values.oidc.issuer -}}
{{- $oidc := dict "issuer" $values.oidc.issuer "audience" $values.oidc.audience -}}
{{- with $values.oidc.jwksUrl -}}
{{- $_ := set $oidc "jwks_url" . -}}
{{- end -}}
{{- with $values.oidc.scopesClaim -}}
{{- $_ := set $oidc "scopes_claim" . -}}
{{- end -}}
{{- with $values.oidc.appClaim -}}
{{- $_ := set $oidc "app_claim" . -}}
{{- end -}}
{{- $_ := set $settings "oidc" $oidc -}}
{{- end -}}
{{- if $values.traces.otlpEndpoint -}}
{{- $traces := dict "otlp_endpoint" $values.traces.otlpEndpoint -}}
{{- if not (kindIs "invalid" $values.traces.sampleRatio) -}}
{{- $_ := set $traces "sample_ratio" $values.traces.sampleRatio -}}
{{- end -}}
{{- $_ := set $settings "traces" $traces -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* The file: single values, then a table for each map. */}}
{{- define "chatfn.settingsFile" -}}
{{- $settings := include "chatfn.settings" . | fromJson -}}
{{- range $key := keys $settings | sortAlpha }}
{{- $value := get $settings $key }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ include "chatfn.toml" $value }}
{{- end }}
{{- end }}
{{- range $key := keys $settings | sortAlpha }}
{{- $value := get $settings $key }}
{{- if kindIs "map" $value }}

[{{ $key }}]
{{- range $name := keys $value | sortAlpha }}
{{ include "chatfn.tomlKey" $name }} = {{ include "chatfn.toml" (get $value $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
