{{/* Envoy's configuration: one listener for callers, one for probes, one cluster. The tests run it in a real Envoy. */}}

{{- define "chatfn.envoy.upstreamName" -}}
{{- printf "%s-pods.%s.svc" (include "chatfn.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "chatfn.envoy.secret" -}}
{name: {{ . }}, sds_config: {resource_api_version: V3, path_config_source: {path: /etc/envoy/config/{{ . }}.yaml, watched_directory: {path: /etc/envoy/config}}}}
{{- end -}}

{{- define "chatfn.envoy" -}}
{{- $tls := .Values.tls.existingSecret -}}
{{- $mutual := .Values.tls.clientCa.existingSecret -}}
node: {id: {{ include "chatfn.fullname" . }}-envoy, cluster: {{ include "chatfn.fullname" . }}} # Secrets by file take a node with a name.
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
overload_manager:
  resource_monitors:
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: 10000
static_resources:
  listeners:
    - name: grpc
      address: {socket_address: {address: 0.0.0.0, port_value: 7400}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: grpc
                # HTTP/2 for gRPC, HTTP/1.1 for REST.
                codec_type: AUTO
                use_remote_address: true
                server_header_transformation: PASS_THROUGH
                common_http_protocol_options:
                  # GOAWAY after so long; calls that run end on it. So clients leave a pod that is about to go (see preStop), and find new ones.
                  max_connection_duration: {{ .Values.envoy.connectionSecondsMax }}s
                  idle_timeout: 300s
                  headers_with_underscores_action: REJECT_REQUEST
                request_headers_timeout: 10s
                # A log that is followed may be quiet for long.
                stream_idle_timeout: 0s
                http2_protocol_options: {max_concurrent_streams: 1000}
                access_log:
                  - name: envoy.access_loggers.stdout
                    # Those that did not come through alone: the service logs the others.
                    filter:
                      response_flag_filter: {}
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
                      log_format:
                        json_format:
                          time: "%START_TIME%"
                          path: "%REQ(:PATH)%"
                          app: "%REQ(X-CHATFN-APP)%"
                          upstream: "%UPSTREAM_HOST%"
                          flags: "%RESPONSE_FLAGS%"
                          details: "%RESPONSE_CODE_DETAILS%"
                          attempts: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
                          duration_ms: "%DURATION%"
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: chatfn
                      domains: ["*"]
                      routes:
                        - match: {prefix: /}
                          route:
                            cluster: chatfn
                            # Who calls says how long: a gRPC deadline holds here too. Streams that follow a log have none.
                            timeout: 0s
                            max_stream_duration: {grpc_timeout_header_max: 0s}
                            # An app stays where its workers are warm. A call without the metadata goes anywhere.
                            hash_policy:
                              - header: {header_name: x-chatfn-app}
                            retry_policy:
                              # Only what never reached a pod: nothing runs twice. An answer, UNAVAILABLE too, is the caller's to judge.
                              retry_on: connect-failure,refused-stream,reset-before-request
                              num_retries: 3
                              host_selection_retry_max_attempts: 5
                              retry_host_predicate:
                                - name: envoy.retry_host_predicates.previous_hosts
                                  typed_config:
                                    "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                              retry_back_off: {base_interval: 0.025s, max_interval: 0.25s}
          {{- if $tls }}
          transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              {{- if $mutual }}
              require_client_certificate: {{ not .Values.tls.clientCa.optional }}
              {{- end }}
              common_tls_context:
                alpn_protocols: [h2, http/1.1]
                tls_params: {tls_minimum_protocol_version: TLSv1_2}
                tls_certificate_sds_secret_configs: [{{ include "chatfn.envoy.secret" "server" }}]
                {{- if $mutual }}
                validation_context_sds_secret_config: {{ include "chatfn.envoy.secret" "clients" }}
                {{- end }}
          {{- end }}
    # For the kubelet and Prometheus: these two paths of the admin interface, which stays on loopback.
    - name: probes
      ignore_global_conn_limit: true
      address: {socket_address: {address: 0.0.0.0, port_value: 9902}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: probes
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: probes
                      domains: ["*"]
                      routes:
                        - {match: {path: /ready}, route: {cluster: admin}}
                        - {match: {path: /stats/prometheus}, route: {cluster: admin}}
  clusters:
    - name: admin
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}}]}]
    - name: chatfn
      # The headless Service's name is every ready pod's address. Looked up every 5 s; a pod that is to end is no longer among them, and gets
      # nothing new from then on although it is still well (see the service's drain.delaySeconds).
      type: STRICT_DNS
      ignore_health_on_host_removal: true
      connect_timeout: 2s
      lb_policy: RING_HASH
      ring_hash_lb_config: {minimum_ring_size: 1024}
      common_lb_config:
        # A hot app spills over to the next pods of the ring in place of waiting at its own.
        consistent_hashing_lb_config: {hash_balance_factor: {{ .Values.envoy.hashBalancePercent }}}
        # With most pods ill the others are not flooded: better some answers fail than all.
        healthy_panic_threshold: {value: 30}
      load_assignment:
        cluster_name: chatfn
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {socket_address: {address: {{ include "chatfn.envoy.upstreamName" . }}, port_value: 7400}}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              # A node that vanishes closes nothing.
              connection_keepalive: {interval: 10s, timeout: 5s}
      health_checks:
        - timeout: 2s
          interval: 3s
          no_traffic_interval: 3s
          unhealthy_threshold: 2
          healthy_threshold: 1
          # NOT_SERVING while a pod drains.
          grpc_health_check: {}
      outlier_detection:
        # Connections that fail alone. UNAVAILABLE is an answer: while the database is away all pods give it, and none is worse than another.
        split_external_local_origin_errors: true
        consecutive_local_origin_failure: 3
        enforcing_consecutive_5xx: 0
        enforcing_consecutive_gateway_failure: 0
        enforcing_success_rate: 0
        enforcing_local_origin_success_rate: 0
        interval: 2s
        base_ejection_time: 5s
        max_ejection_percent: 50
      circuit_breakers:
        thresholds: [{max_connections: 1024, max_pending_requests: 10000, max_requests: 10000, max_retries: 100}]
      {{- if $tls }}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: {{ include "chatfn.envoy.upstreamName" . }}
          common_tls_context:
            alpn_protocols: [h2]
            validation_context_sds_secret_config: {{ include "chatfn.envoy.secret" "authority" }}
            {{- if $mutual }}
            tls_certificate_sds_secret_configs: [{{ include "chatfn.envoy.secret" "client" }}]
            {{- end }}
      {{- end }}
{{- end -}}
