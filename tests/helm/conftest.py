"""What the tests share: the chart, rendered by Helm's own engine, and ways to look at what comes out."""

import sys
from functools import cache, cached_property
from pathlib import Path

import helm_python
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "chat-functions"
sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES  # noqa: E402


@cache
def chart():
    return helm_python.Chart.load(CHART)


class Rendered:
    """A release's objects."""

    def __init__(self, values, name="rel", namespace="apps"):
        self.values = chart().merge_values(values)
        files = chart().render(values, name=name, namespace=namespace)
        self.notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
        self.text = "\n---\n".join(text for path, text in files.items() if path.endswith(".yaml"))

    @cached_property
    def objects(self):
        return [thing for thing in yaml.load_all(self.text, StrictLoader) if thing]

    def of(self, kind, suffix=None):
        """All of a kind, or the one whose name ends so."""
        found = [thing for thing in self.objects if thing["kind"] == kind]
        if suffix is None:
            return found
        exact = [thing for thing in found if thing["metadata"]["name"].endswith(suffix)]
        assert len(exact) == 1, f"{kind} …{suffix}: {[thing['metadata']['name'] for thing in found]}"
        return exact[0]

    @property
    def server(self):
        """The service's Deployment."""
        return next(thing for thing in self.of("Deployment") if component(thing) == "server")

    @property
    def pod(self):
        return self.server["spec"]["template"]["spec"]

    @property
    def container(self):
        (container,) = self.pod["containers"]
        return container

    def pods(self):
        """Every pod, with its labels: (the object that makes it, labels, spec)."""
        for thing in self.objects:
            if thing["kind"] in ("Deployment", "Job"):
                template = thing["spec"]["template"]
                yield thing, template["metadata"]["labels"], template["spec"]
            elif thing["kind"] == "Pod":
                yield thing, thing["metadata"]["labels"], thing["spec"]

    @property
    def settings_file(self):
        (text,) = [thing["data"]["chatfn.toml"] for thing in self.of("ConfigMap") if "chatfn.toml" in thing["data"]]
        return text


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML's last one would win unseen."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: twice: {twice}"
        return super().construct_mapping(node, deep)


def component(thing):
    return thing["metadata"]["labels"]["app.kubernetes.io/component"]


@cache
def rendered_case(name):
    return Rendered(CASES[name])


@pytest.fixture(params=CASES, ids=str)
def release(request):
    """Each of the cases, rendered."""
    return rendered_case(request.param)
