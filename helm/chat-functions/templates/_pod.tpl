{{/* Variables of the service's container. Secrets are referred to, never copied. */}}
{{- define "chatfn.env" -}}
{{- $artifacts := .Values.artifacts -}}
{{- if .Values.database.existingSecret }}
{{ include "chatfn.databaseEnv" . }}
{{- end }}
{{- with $artifacts.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $artifacts.s3.accessKeyIdKey }}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $artifacts.s3.secretAccessKeyKey }}}
{{- end }}
{{- with $artifacts.s3.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with $artifacts.s3.endpoint }}
- {name: AWS_ENDPOINT, value: {{ . | quote }}}
{{- if hasPrefix "http://" . }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- end }}
{{- if $artifacts.gcs.existingSecret }}
- {name: GOOGLE_SERVICE_ACCOUNT, value: /etc/chatfn/gcs/key.json}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Secrets that are files, each in a directory of its own: Kubernetes updates whole directories. The name is the volume's and the directory's. */}}
{{- define "chatfn.secretMounts" -}}
{{- $values := .Values -}}
- {name: operator-token, secret: {{ $values.operatorToken.existingSecret }}, items: [{key: {{ $values.operatorToken.key }}, path: token}]}
{{- with $values.encryptionKeys.existingSecret }}
- {name: encryption-keys, secret: {{ . }}, items: [{key: {{ $values.encryptionKeys.key }}, path: keys}]}
{{- end }}
{{- with $values.tls.existingSecret }}
- {name: tls, secret: {{ . }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
{{- with $values.tls.clientCa.existingSecret }}
- {name: client-ca, secret: {{ . }}, items: [{key: {{ $values.tls.clientCa.key }}, path: ca.crt}]}
{{- end }}
{{- with $values.npm.existingSecret }}
- {name: npm, secret: {{ . }}, items: [{key: {{ $values.npm.key }}, path: npmrc}]}
{{- end }}
{{- with $values.artifacts.gcs.existingSecret }}
- {name: gcs, secret: {{ . }}, items: [{key: {{ $values.artifacts.gcs.key }}, path: key.json}]}
{{- end }}
{{- end -}}
