"""A real Envoy with the chart's configuration, and gRPC servers behind it that stand for the pods. All on loopback."""

import socket
import subprocess
import threading
import time
import urllib.request
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

METHOD = "/chatfunctions.v1.InvocationService/Invoke"
PATIENCE_SECONDS = 30


def envoy_binary():
    envoy = pytest.importorskip("envoy", reason="skipped because there is no Envoy for this machine on PyPI")
    return Path(envoy.__file__).parent / "_bin" / "envoy"


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait_until(what, condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)


class Backend:
    """Answers with its own name, or as the request asks, and counts what it was asked."""

    def __init__(self, name, credentials=None):
        self.name, self.calls, self.seconds_left = name, [], None
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        method = grpc.unary_unary_rpc_method_handler(self.answer)
        service, rpc = METHOD.strip("/").split("/")
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {rpc: method})])
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        if credentials:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def answer(self, request, context):
        self.calls.append(request)
        self.seconds_left = context.time_remaining()
        if request == b"unavailable":
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if request == b"never":
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait()
        return self.name.encode()

    def drain(self):
        self.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def stop(self):
        self.server.stop(0).wait()


class Gateway:
    """Envoy, as the chart's ConfigMap says but for addresses."""

    def __init__(self, release, backends, directory):
        (data,) = [thing["data"] for thing in release.of("ConfigMap") if "envoy.yaml" in thing["data"]]
        self.port, self.probes, admin = free_port(), free_port(), free_port()
        (directory / "config").mkdir()
        for name, text in data.items():
            text = text.replace("/etc/envoy", str(directory))
            if name == "envoy.yaml":
                config = yaml.safe_load(text)
                self.place(config, admin, backends)
                text = yaml.safe_dump(config)
            (directory / "config" / name).write_text(text)
        self.log = (directory / "log").open("w+")
        command = [envoy_binary(), "--config-path", directory / "config" / "envoy.yaml", "--log-level", "warning",
                   "--concurrency", "2", "--disable-hot-restart"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.admin = f"http://127.0.0.1:{admin}"

    def place(self, config, admin, backends):
        def address(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        config["admin"]["address"] = address(admin)
        listeners = {listener["name"]: listener for listener in config["static_resources"]["listeners"]}
        listeners["grpc"]["address"], listeners["probes"]["address"] = address(self.port), address(self.probes)
        clusters = {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}
        ends = {"admin": [admin], "chatfn": [backend.port for backend in backends]}
        for name, ports in ends.items():
            endpoints = [{"endpoint": {"address": address(port)}} for port in ports]
            clusters[name]["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]

    def statistic(self, name):
        """One of Envoy's counters; 0 while it does not listen yet."""
        assert self.process.poll() is None, self.output()
        try:
            text = urllib.request.urlopen(f"{self.admin}/stats?filter={name}", timeout=5).read().decode()
        except OSError:
            return 0
        return sum(int(line.rsplit(": ", 1)[1]) for line in text.splitlines())

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def get(self, path):
        """Status of a GET at the port for probes."""
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.probes}{path}", timeout=5).status
        except urllib.error.HTTPError as err:
            return err.code

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def call(channel, request=b"who", app=None, timeout=PATIENCE_SECONDS):
    metadata = [("x-chatfn-app", app)] if app else []
    return channel.unary_unary(METHOD)(request, metadata=metadata, timeout=timeout).decode()
