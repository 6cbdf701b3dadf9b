"""The Envoy front, in a real Envoy: an app stays on its pod, and nothing runs twice."""

import shutil
import subprocess
from contextlib import closing, contextmanager

import grpc
import pytest

from conftest import rendered_case
from gateway import Backend, Gateway, call, envoy_binary, wait_until

APPS = [f"app-{number}" for number in range(60)]
CASES = ["envoy", "envoy, tls", "envoy, mtls", "envoy, mtls, optional", "everything"]


@contextmanager
def front(directory, case="envoy", count=3, server=None, caller=None):
    """(Envoy, the backends, a channel to it)."""
    backends = [Backend(f"pod-{number}", server) for number in range(count)]
    try:
        with closing(Gateway(rendered_case(case), backends, directory)) as gateway:
            target = f"127.0.0.1:{gateway.port}"
            options = [("grpc.ssl_target_name_override", "localhost")]
            with (grpc.secure_channel(target, caller, options) if caller else grpc.insecure_channel(target)) as channel:
                wait_until("Envoy listens", lambda: gateway.statistic("listener_manager.workers_started") == 1)
                # What Envoy's main thread has seen reaches its workers a little later.
                wait_until("all are on the ring", lambda: len({call(channel, app=app) for app in APPS}) == count)
                for backend in backends:
                    backend.calls.clear()
                yield gateway, backends, channel
    finally:
        for backend in backends:
            backend.stop()


class Authority:
    """Signs certificates, as cert-manager would."""

    def __init__(self, directory):
        if not shutil.which("openssl"):
            pytest.skip("skipped because openssl, which makes the certificates, is not installed")
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.openssl("ca", "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE")

    def openssl(self, name, *args):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-keyout", f"{name}.key", "-out", f"{name}.crt", *args],
            cwd=self.directory, check=True, capture_output=True)

    def sign(self, name, *hosts):
        names = ",".join(f"DNS:{host}" for host in hosts)
        self.openssl(name, "-CA", "ca.crt", "-CAkey", "ca.key", "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}")
        return self.read(f"{name}.key"), self.read(f"{name}.crt")

    def read(self, name):
        return (self.directory / name).read_bytes()

    def secrets(self, directory, server_names):
        """The Secrets that Envoy mounts; (what the pods serve with, what a caller calls with)."""
        server = self.sign("server", "localhost", *server_names)
        client = self.sign("client", "client")
        for name, pair in {"tls": server, "client-certificate": client}.items():
            (directory / name).mkdir()
            (directory / name / "tls.key").write_bytes(pair[0])
            (directory / name / "tls.crt").write_bytes(pair[1])
        (directory / "client-ca").mkdir()
        for name in ("tls", "client-ca"):
            (directory / name / "ca.crt").write_bytes(self.read("ca.crt"))
        serve = grpc.ssl_server_credentials([server], self.read("ca.crt"), require_client_auth=True)
        return serve, grpc.ssl_channel_credentials(self.read("ca.crt"), *client)


@pytest.mark.parametrize("case", CASES)
def test_envoy_takes_the_configuration(case, tmp_path):
    (data,) = [thing["data"] for thing in rendered_case(case).of("ConfigMap") if "envoy.yaml" in thing["data"]]
    (tmp_path / "config").mkdir()
    for name, text in data.items():
        (tmp_path / "config" / name).write_text(text.replace("/etc/envoy", str(tmp_path)))
    command = [envoy_binary(), "--mode", "validate", "--config-path", tmp_path / "config" / "envoy.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert "deprecated" not in checked.stderr.lower(), checked.stderr


def test_an_app_stays_on_its_pod_and_apps_spread_over_pods(tmp_path):
    with front(tmp_path) as (gateway, backends, channel):
        first = {app: call(channel, app=app) for app in APPS}
        assert set(first.values()) == {"pod-0", "pod-1", "pod-2"}, "a third each, more or less"
        assert {app: call(channel, app=app) for app in APPS} == first
        # Without the metadata a call goes somewhere.
        assert call(channel).startswith("pod-")


def test_a_pod_that_is_gone_fails_no_call_and_moves_no_other_app(tmp_path):
    with front(tmp_path) as (gateway, backends, channel):
        before = {app: call(channel, app=app) for app in APPS}
        backends[0].stop()
        after = {app: call(channel, app=app) for app in APPS}
        assert "pod-0" not in after.values()
        assert all(after[app] == pod for app, pod in before.items() if pod != "pod-0")


def test_a_pod_that_drains_is_left_alone(tmp_path):
    with front(tmp_path) as (gateway, backends, channel):
        backends[1].drain()
        wait_until("nobody asks it any more", lambda: "pod-1" not in {call(channel, app=app) for app in APPS})


def test_an_answer_is_not_asked_for_again(tmp_path):
    with front(tmp_path) as (gateway, backends, channel):
        with pytest.raises(grpc.RpcError) as refused:
            call(channel, b"unavailable", app="shop")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert sum(len(backend.calls) for backend in backends) == 1


def test_a_call_that_was_under_way_is_not_run_again(tmp_path):
    with front(tmp_path) as (gateway, backends, channel):
        running = channel.unary_unary("/chatfunctions.v1.InvocationService/Invoke").future(
            b"never", metadata=[("x-chatfn-app", "shop")], timeout=60)
        wait_until("it runs", lambda: any(backend.calls for backend in backends))
        (busy,) = [backend for backend in backends if backend.calls]
        busy.stop()
        assert running.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert sum(len(backend.calls) for backend in backends) == 1


def test_a_callers_deadline_reaches_the_pod_and_envoy_adds_none(tmp_path):
    with front(tmp_path, count=1) as (gateway, (backend,), channel):
        call(channel, app="shop", timeout=20)
        assert 0 < backend.seconds_left < 25, "a client rounds up for the wire"
        call(channel, app="shop", timeout=4000)
        assert 3600 < backend.seconds_left < 4040
        with pytest.raises(grpc.RpcError) as late:
            call(channel, b"never", app="shop", timeout=0.5)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_probes_see_two_paths_of_the_admin_interface_and_no_more(tmp_path):
    with front(tmp_path, count=1) as (gateway, _, _):
        assert gateway.get("/ready") == 200
        assert gateway.get("/stats/prometheus") == 200
        assert gateway.get("/config_dump") == 404 and gateway.get("/") == 404


def test_tls_on_both_sides_with_client_certificates(tmp_path):
    authority = Authority(tmp_path / "authority")
    directory = tmp_path / "envoy"
    directory.mkdir()
    serve, caller = authority.secrets(directory, ["rel-chat-functions-pods.apps.svc"])
    with front(directory, "envoy, mtls", server=serve, caller=caller) as (gateway, _, channel):
        first = {app: call(channel, app=app) for app in APPS}
        assert len(set(first.values())) == 3
        stranger = grpc.ssl_channel_credentials(authority.read("ca.crt"))
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"127.0.0.1:{gateway.port}", stranger, options) as outside:
            with pytest.raises(grpc.RpcError) as refused:
                call(outside, timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_client_may_have_no_certificate_but_not_a_wrong_one_where_it_is_optional(tmp_path):
    authority, other = Authority(tmp_path / "authority"), Authority(tmp_path / "other")
    directory = tmp_path / "envoy"
    directory.mkdir()
    serve, _ = authority.secrets(directory, ["rel-chat-functions-pods.apps.svc"])
    without = grpc.ssl_channel_credentials(authority.read("ca.crt"))
    with front(directory, "envoy, mtls, optional", server=serve, caller=without) as (gateway, _, _):
        wrong = grpc.ssl_channel_credentials(authority.read("ca.crt"), *other.sign("caller", "caller"))
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"127.0.0.1:{gateway.port}", wrong, options) as outside:
            with pytest.raises(grpc.RpcError) as refused:
                call(outside, timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_pod_with_another_name_is_not_believed(tmp_path):
    authority = Authority(tmp_path / "authority")
    directory = tmp_path / "envoy"
    directory.mkdir()
    serve, caller = authority.secrets(directory, ["somebody.else.svc"])
    backend = Backend("impostor", serve)
    with closing(Gateway(rendered_case("envoy, mtls"), [backend], directory)) as gateway:
        wait_until("it was looked at", lambda: gateway.statistic("cluster.chatfn.ssl.fail_verify_san") > 0)
        assert gateway.statistic("cluster.chatfn.membership_healthy") == 0
    backend.stop()
