"""Every case is a chart that Helm accepts and objects that Kubernetes would."""

import json
from functools import cache
from pathlib import Path

import helm_python
import jsonschema
import kubernetes_validate
import pytest

from cases import CASES
from conftest import CHART, Rendered, chart, rendered_case

# The oldest that Chart.yaml names, and the newest that the package knows.
VERSIONS = ["1.30", "1.37"]
# It reads megabytes of definitions anew for each object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
# No schemas of these are to be had from a registry: ours know the fields that the chart writes, and no others.
CRDS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "crds").glob("*.json")}


@pytest.mark.parametrize("case", CASES)
def test_helm_lints_it_strictly(case):
    report = helm_python.lint(CHART, CASES[case], strict=True, namespace="apps")
    # 1: information, "icon is recommended".
    bad = [message for message in report["messages"] if message["severity"] > 1]
    assert not bad and not report["errors"], report


@pytest.mark.parametrize("case", CASES)
def test_the_schema_takes_its_values(case):
    chart().validate_schema(CASES[case])


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(release, version):
    for thing in release.objects:
        if thing["kind"] in CRDS:
            jsonschema.validate(thing, CRDS[thing["kind"]])
        else:
            kubernetes_validate.validate(thing, version, strict=True)


def test_a_field_that_does_not_exist_would_be_seen():
    pod = rendered_case("embedded").of("Pod")[0]
    wrong = {**pod, "spec": {**pod["spec"], "runAsNonRoot": True}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)
    route = rendered_case("gateway").of("GRPCRoute")[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**route, "spec": {**route["spec"], "hosts": []}}, CRDS["GRPCRoute"])


def test_the_package_has_all_that_templates_read(tmp_path):
    archive = helm_python.package(CHART, destination=tmp_path)
    packed = helm_python.Chart.load(archive)
    assert packed.render(CASES["everything"], name="rel", namespace="apps") == chart().render(
        CASES["everything"], name="rel", namespace="apps")


def test_upgrades_render_the_same_objects():
    install, upgrade = (
        chart().render(CASES["everything"], name="rel", namespace="apps", is_install=new, is_upgrade=not new, revision=revision)
        for new, revision in [(True, 1), (False, 7)]
    )
    assert install == upgrade


def test_names_fit_and_releases_do_not_collide():
    long = Rendered(CASES["everything"] | {"fullnameOverride": ""}, name="r" * 53)
    names = [thing["metadata"]["name"] for thing in long.objects]
    assert max(map(len, names)) <= 63, names
    for thing in long.objects:
        assert all(len(value) <= 63 for value in thing["metadata"]["labels"].values())
    other = Rendered(CASES["everything"] | {"fullnameOverride": ""}, name="other")
    theirs = {(thing["kind"], thing["metadata"]["name"]) for thing in other.objects}
    ours = {(thing["kind"], thing["metadata"]["name"]) for thing in long.objects}
    # The ServiceAccount has a name that the case gives it.
    assert ours & theirs == {("ServiceAccount", "runner")}


def test_no_two_objects_have_one_name(release):
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in release.objects]
    assert len(names) == len(set(names))
