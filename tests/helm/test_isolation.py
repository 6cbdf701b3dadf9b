"""The isolation profiles, network policies included: what a pod may do, and what the service demands of it."""

import ipaddress
import tomllib

import pytest

from conftest import ROOT, component, rendered_case

CAPABILITIES = {
    "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE", "SETUID", "SETGID", "SETPCAP", "NET_ADMIN", "NET_BIND_SERVICE", "CHOWN",
    "DAC_OVERRIDE", "FOWNER", "KILL",
}
PROFILES = {"restricted": "landlock", "userns": "userns", "hardened": "full", "root": "full"}


def passes_restricted(spec):
    """Pod Security "restricted" (kubernetes.io/docs/concepts/security/pod-security-standards), as far as these pods could break it."""
    pod = spec["securityContext"]
    for container in spec["containers"]:
        own = container["securityContext"]
        yield pod.get("runAsNonRoot") is True and pod.get("runAsUser") != 0
        yield own.get("allowPrivilegeEscalation") is False
        yield own["capabilities"] == {"drop": ["ALL"]}
        yield pod["seccompProfile"]["type"] == "RuntimeDefault"
        yield "appArmorProfile" not in pod and "procMount" not in own
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for volume in spec.get("volumes", []):
        yield bool(allowed & set(volume))


def test_every_pod_but_the_service_in_other_profiles_passes_restricted(release):
    for thing, _, spec in release.pods():
        if component(thing) != "server" or release.values["isolation"]["profile"] == "restricted":
            assert all(passes_restricted(spec)), thing["metadata"]["name"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_what_it_says(profile):
    release = rendered_case(profile)
    pod, own = release.pod["securityContext"], release.container["securityContext"]
    isolation = tomllib.loads(release.settings_file)["isolation"]
    root = profile in ("hardened", "root")
    assert isolation["mode"] == PROFILES[profile]
    assert release.pod.get("hostUsers", True) is (profile in ("restricted", "root"))
    assert pod["runAsUser"] == (0 if root else 1000) and pod["runAsNonRoot"] is not root
    assert set(own["capabilities"].get("add", [])) == (CAPABILITIES if root else set())
    assert own["capabilities"]["drop"] == ["ALL"]
    # Kubernetes refuses false with SYS_ADMIN.
    assert own["allowPrivilegeEscalation"] is root
    # Only an unprivileged namespace in a namespace needs the whole /proc, and Kubernetes allows it with hostUsers: false alone.
    assert own.get("procMount") == ("Unmasked" if profile == "userns" else None)
    assert pod["seccompProfile"]["type"] == ("Unconfined" if profile == "userns" else "RuntimeDefault")
    assert (pod.get("appArmorProfile", {}).get("type") == "Unconfined") is (profile != "restricted")
    # The broker stays root, the service does not.
    assert tomllib.loads(release.settings_file).get("user") == ("1000:1000" if root else None)
    # What is there for the service to read is there for its group.
    assert pod["fsGroup"] == 1000 and pod["fsGroupChangePolicy"] == "OnRootMismatch"
    for volume in release.pod["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440
    # A lesser mode would start, too, and nobody would look: each demands what it is chosen for.
    demanded = set(isolation["require"])
    assert "seccomp" in demanded
    assert ({"filesystem", "processes", "network", "egress"} <= demanded) is (profile != "restricted")
    assert ("user" in demanded) is root and ("landlock" in demanded) is (profile == "restricted")
    assert not {"memory", "cpu", "pids"} & demanded


def test_writable_cgroups_are_demanded_where_they_are_promised():
    release = rendered_case("hardened, writable cgroups")
    assert {"memory", "cpu", "pids"} <= set(tomllib.loads(release.settings_file)["isolation"]["require"])
    assert release.pod["runtimeClassName"] == "cgroup-writable"


def test_the_security_page_names_the_same_capabilities():
    page = (ROOT / "docs" / "security.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| hardened |")]
    assert all(capability in row for capability in CAPABILITIES)


def rules(release, name, direction):
    (policy,) = [thing for thing in release.of("NetworkPolicy") if component(thing) == name]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"], "what is not listed is refused"
    return policy["spec"][direction]


def test_policies_are_there_unless_they_are_off(release):
    expected = {"server"} | ({"envoy"} if release.values["envoy"]["enabled"] else set())
    found = {component(thing) for thing in release.of("NetworkPolicy")}
    assert found == (expected if release.values["networkPolicy"]["enabled"] else set())


def test_nobody_is_let_in_by_an_empty_list(release):
    # A rule without `from` lets everybody in.
    for policy in release.of("NetworkPolicy"):
        assert all(rule["from"] for rule in policy["spec"]["ingress"])


def test_the_web_is_what_is_public(release):
    if not release.values["networkPolicy"]["enabled"]:
        return
    web = [rule for rule in rules(release, "server", "egress") if any("0.0.0.0/0" in str(peer) for peer in rule.get("to", []))]
    assert len(web) == release.values["networkPolicy"]["egress"]["web"]["enabled"]
    for rule in web:
        assert {port["port"] for port in rule["ports"]} == {80, 443}
        inside = ["10.2.3.4", "172.20.0.1", "192.168.7.7", "169.254.169.254", "100.64.0.1", "127.0.0.1", "fd00::1", "fe80::1", "::1"]
        inside += [str(ipaddress.ip_network(cidr)[1]) for cidr in release.values["clusterCidrs"]]
        for address in map(ipaddress.ip_address, inside):
            assert not reached(rule, address), address
        for address in map(ipaddress.ip_address, ["1.1.1.1", "2606:4700::1111"]):
            assert reached(rule, address), address
        # Kubernetes refuses an exception that does not lie in its block.
        for peer in rule["to"]:
            block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
            for exception in peer["ipBlock"]["except"]:
                assert ipaddress.ip_network(exception).subnet_of(block)


def reached(rule, address):
    for peer in rule["to"]:
        block = peer["ipBlock"]
        if address in ipaddress.ip_network(block["cidr"]):
            return not any(address in ipaddress.ip_network(exception) for exception in block["except"])
    return False


def test_only_the_database_and_traces_may_be_anywhere(release):
    if not release.values["networkPolicy"]["enabled"]:
        return
    anywhere = [rule["ports"][0]["port"] for rule in rules(release, "server", "egress") if "to" not in rule]
    assert set(anywhere) <= {5432, 4317}
    assert (5432 in anywhere) == (bool(release.values["database"]["existingSecret"])
                                  and not release.values["networkPolicy"]["egress"]["database"]["to"])
    assert (4317 in anywhere) == (bool(release.values["traces"]["otlpEndpoint"])
                                  and not release.values["networkPolicy"]["egress"]["traces"]["to"])


def test_what_functions_never_reach_is_the_same_for_service_and_policy():
    release = rendered_case("everything")
    denied = tomllib.loads(release.settings_file)["egress"]["deny"]
    assert denied == ["203.0.113.0/24", "2001:db8::/32", "198.51.100.0/24"]


def test_behind_envoy_only_envoy_calls():
    release = rendered_case("envoy")
    (calls, admin) = rules(release, "server", "ingress")
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in calls["from"]] == ["envoy"]
    assert [port["port"] for port in admin["ports"]] == ["admin"]
    (callers,) = rules(release, "envoy", "ingress")
    assert {"podSelector": {}} in callers["from"]


def test_who_reads_metrics_is_named():
    (_, admin) = rules(rendered_case("everything"), "server", "ingress")
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}} in admin["from"]
    (_, admin) = rules(rendered_case("shared"), "server", "ingress")
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in admin["from"]] == ["test"]
