{{/* The isolation profiles: what each takes of the pod and asks of the service. docs/security.md ("How to deploy it") is the ground. */}}

{{- define "chatfn.profile" -}}
restricted:
  mode: landlock
  require: [landlock, seccomp, capabilities, rlimits, environment]
userns:
  mode: userns
  require: [filesystem, processes, network, egress, seccomp, capabilities, rlimits, environment]
hardened:
  mode: full
  require: [filesystem, user, processes, network, egress, seccomp, capabilities, rlimits, environment]
root:
  mode: full
  require: [filesystem, user, processes, network, egress, seccomp, capabilities, rlimits, environment]
{{- end -}}

{{/* The table `[isolation]`, as JSON. A mode that does not work is an error at start, never a quiet fall to a lesser one. */}}
{{- define "chatfn.isolation" -}}
{{- $isolation := .Values.isolation -}}
{{- $profile := get (include "chatfn.profile" . | fromYaml) $isolation.profile -}}
{{- $require := $profile.require -}}
{{- if $isolation.writableCgroups -}}
{{- $require = concat $require (list "memory" "cpu" "pids") -}}
{{- end -}}
{{- if not (kindIs "invalid" $isolation.require) -}}
{{- $require = $isolation.require -}}
{{- end -}}
{{- dict "mode" $profile.mode "require" $require "single_tenant" $isolation.singleTenant | toJson -}}
{{- end -}}

{{/* "true" where the broker is root and the service drops to uid 1000. */}}
{{- define "chatfn.startsAsRoot" -}}
{{- if has .Values.isolation.profile (list "hardened" "root") -}}true{{- end -}}
{{- end -}}

{{- define "chatfn.podSecurity" -}}
{{- $profile := .Values.isolation.profile -}}
{{- if has $profile (list "userns" "hardened") }}
# Root in here is nobody on the node.
hostUsers: false
{{- end }}
securityContext:
  {{- if eq $profile "restricted" }}
  {{- include "chatfn.restrictedPod" . | nindent 2 }}
  {{- else }}
  {{- if eq $profile "userns" }}
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  # The runtime's profile forbids clone(CLONE_NEWUSER) to those without capabilities. Workers are under the service's own filters.
  seccompProfile: {type: Unconfined}
  {{- else }}
  # The broker. The service drops to `user` before it reads anything from a network.
  runAsNonRoot: false
  runAsUser: 0
  runAsGroup: 0
  seccompProfile: {type: RuntimeDefault}
  {{- end }}
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  # containerd's profile forbids mounts.
  appArmorProfile: {type: Unconfined}
  {{- end }}
{{- with .Values.isolation.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "chatfn.containerSecurity" -}}
{{- if include "chatfn.startsAsRoot" . -}}
# Kubernetes refuses `false` together with SYS_ADMIN. Service and workers set no_new_privs themselves.
allowPrivilegeEscalation: true
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  # Mounts and namespaces; workers' users; their bounding set; egress by a supervisor that makes connections for them; the data directory.
  add: [SYS_ADMIN, SYS_CHROOT, SYS_PTRACE, SETUID, SETGID, SETPCAP, NET_ADMIN, NET_BIND_SERVICE, CHOWN, DAC_OVERRIDE, FOWNER, KILL]
{{- else -}}
{{- include "chatfn.restrictedContainer" . }}
{{- if eq .Values.isolation.profile "userns" }}
# Workers' namespaces mount a /proc of their own; the kernel allows that where the pod's is whole.
procMount: Unmasked
{{- end }}
{{- end -}}
{{- end -}}
