"""The chatfn.toml that the chart writes: it parses, the service knows its settings, and the files that it names are mounted."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest

from cases import CASES, SHARED
from conftest import ROOT, Rendered, rendered_case


def known_settings():
    """By table, from the README, which a test of the crate's keeps as src/config.rs is; "" is the whole file."""
    readme = (ROOT / "README.md").read_text()
    tables = re.findall(r"<!-- (\w+): made from .*?-->\n(.*?)<!-- end of", readme, re.S)
    known = {name.replace("configuration", ""): set(re.findall(r"^\| `(\w+)` \|", rows, re.M)) for name, rows in tables}
    assert {"listen", "data_dir", "drain_timeout"} <= known[""] and "mode" in known["isolation"]
    assert "cert_file" in known["tls"] and "issuer" in known["oidc"]
    return known


def test_every_setting_is_one_that_the_service_knows(release):
    settings, known = tomllib.loads(release.settings_file), known_settings()
    tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
    for table, keys in ({"": settings} | tables).items():
        unknown = set(keys) - known[table]
        assert not unknown, f"[{table}] {unknown}"


def test_files_that_it_names_are_mounted(release):
    text = release.settings_file
    mounts = {mount["name"]: mount["mountPath"] for mount in release.container["volumeMounts"]}
    there = set()
    for volume in release.pod["volumes"]:
        items = volume.get("secret", {}).get("items", [])
        there |= {f"{mounts[volume['name']]}/{item['path']}" for item in items}
    named = set(re.findall(r"/etc/chatfn/[\w./-]+", text))
    assert named <= there
    # And nothing is mounted for nobody; the Google key is named by a variable.
    variables = {variable.get("value") for variable in release.container.get("env", [])}
    assert there <= named | variables
    assert tomllib.loads(text)["data_dir"].startswith(mounts["data"] + "/")


def test_numbers_stay_whole_and_tables_stay_tables():
    settings = tomllib.loads(rendered_case("everything").settings_file)
    assert settings["rate_per_app"] == 1_000_000 and isinstance(settings["rate_per_app"], int)
    assert settings["memory_budget_bytes"] == 3 << 30
    assert settings["artifacts_cache_bytes_max"] == 10 << 30
    assert settings["egress"]["dedicated"]["shop.eu"]["allow"] == [{"network": "10.9.0.0/16", "ports": [443]}]
    assert settings["trigger_types"][0]["schema"] == {"type": "object", "required": ["order"]}
    assert settings["trusted_proxies"] == ["10.244.0.0/16", "fd00:10:244::/56"]
    assert settings["traces"] == {"otlp_endpoint": "http://otel.observability:4317", "sample_ratio": 0.1}
    assert settings["oidc"] == {
        "issuer": "https://login.example", "audience": "chatfn", "jwks_url": "https://login.example/keys", "scopes_claim": "roles",
        "app_claim": "tenant",
    }


@pytest.mark.parametrize("case, expected", [("mtls", "required"), ("envoy, mtls, optional", "optional")])
def test_clients_need_a_certificate_unless_the_values_say_otherwise(case, expected):
    release = rendered_case(case)
    assert tomllib.loads(release.settings_file)["tls"]["client_auth"] == expected
    envoy = [thing["data"]["envoy.yaml"] for thing in release.of("ConfigMap") if "envoy.yaml" in thing["data"]]
    assert all(f"require_client_certificate: {str(expected == 'required').lower()}" in text for text in envoy)


@pytest.mark.parametrize("text", ['say "hi"', "a\\b", "tab\tnew\nline", "ä€😀", "<&>", "'''", "# no comment", "x = 1"])
def test_texts_come_through_as_they_are(text):
    values = SHARED | {"config": {"log_level": text, "sdk": {"options": {text: [text, {"a b": text}]}}}}
    settings = tomllib.loads(Rendered(values).settings_file)
    assert settings["log_level"] == text
    assert settings["sdk"]["options"] == {text: [text, {"a b": text}]}


@pytest.mark.parametrize("limit, percent, expected", [
    ("4Gi", 75, 3 << 30), ("512Mi", 50, 256 << 20), ("1.5Gi", 100 - 5, int(1.5 * (1 << 30) * 0.95)), ("2G", 50, 10**9),
    ("1073741824", 50, 1 << 29),
])
def test_the_budget_of_workers_follows_from_the_memory_limit(limit, percent, expected):
    values = SHARED | {"memoryBudgetPercent": percent, "resources": {"limits": {"memory": limit}}}
    assert tomllib.loads(Rendered(values).settings_file)["memory_budget_bytes"] == expected


def test_what_follows_from_other_values_cannot_be_overridden():
    schema_says = Rendered(SHARED | {"config": {"log_format": "text"}})
    assert tomllib.loads(schema_says.settings_file)["log_format"] == "text", "json is a default"


def binary():
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = ROOT / target / "debug" / "chatfn"
    return path if path.exists() else None


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A directory with what the Secrets would hold."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificates, is not installed")
    directory = tmp_path_factory.mktemp("secrets")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=chatfn", "-keyout", directory / "tls.key", "-out", directory / "tls.crt"],
        check=True, capture_output=True)
    return directory


@pytest.mark.parametrize("case", CASES)
def test_the_service_itself_takes_it(case, certificates, tmp_path):
    """By `chatfn serve --check-config`, with the files where this machine can have them."""
    chatfn = binary()
    if chatfn is None:
        pytest.skip("target/debug/chatfn is not built yet")
    text = rendered_case(case).settings_file
    files = {
        "operator-token/token": "0123456789abcdef", "npm/npmrc": "", 
        "encryption-keys/keys": "# `chatfn keys generate`\n" + subprocess.check_output([chatfn, "keys", "generate"], text=True),
        "tls/tls.crt": (certificates / "tls.crt").read_text(), "tls/tls.key": (certificates / "tls.key").read_text(),
        "client-ca/ca.crt": (certificates / "tls.crt").read_text(),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o440)  # As the pod has it.
    text = text.replace("/etc/chatfn", str(tmp_path)).replace("/var/lib/chatfn", str(tmp_path))
    config = tmp_path / "chatfn.toml"
    config.write_text(text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if CASES[case].get("database"):
        environment["CHATFN_DATABASE_URL"] = "postgres://chatfn:secret@127.0.0.1:1/chatfn"
    checked = subprocess.run([chatfn, "serve", "--check-config", "--config", config], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "secret" not in checked.stdout + checked.stderr
