"""What can be said of the Containerfile without a builder and its base images: it copies what a build reads, and runs what is there."""

import json
import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from conftest import ROOT, rendered_case
from test_settings import binary

TEXT = re.sub(r"\\\n\s*", " ", (ROOT / "Containerfile").read_text())
LINES = [line.split(None, 1) for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]


def stages():
    """By name, the last one ""; each a list of (instruction, rest)."""
    found, current = {}, None
    for instruction, rest in LINES:
        if instruction == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else ""
            current = found.setdefault(name, [])
        elif current is None:
            assert instruction == "ARG"
            continue
        current.append((instruction, rest))
    return found


def copied():
    """Sources from the working tree."""
    return [source for instruction, rest in LINES if instruction == "COPY" and "--from=" not in rest for source in rest.split()[:-1]]


def of_last(instruction):
    return [rest for name, rest in stages()[""] if name == instruction]


def test_what_is_copied_is_there_and_is_not_ignored():
    ignored = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:]} == set(copied())
    assert all((ROOT / source).exists() for source in copied())
    assert (ROOT / ".dockerignore").resolve() == ROOT / ".containerignore"


def test_stages_copy_from_stages_that_are_there():
    names = set(stages())
    for instruction, rest in LINES:
        for source in re.findall(r"--from=(\S+)", rest) if instruction == "COPY" else []:
            assert source in names


def test_all_that_the_build_reads_is_copied():
    reads = set()
    for path in [ROOT / "build.rs", *(ROOT / "src").rglob("*.rs")]:
        text = path.read_text()
        reads |= {(path.parent / name).resolve() for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', text)}
        reads |= {ROOT / name for name in re.findall(r'#\[folder = "([^"]+)"\]|migrate!\("([^"]+)"\)', text) for name in name if name}
    tops = {path.relative_to(ROOT).parts[0] for path in reads if path.is_relative_to(ROOT)}
    assert {"src", "migrations", "node-shim"} <= tops
    # Tests read more, and are not built.
    assert tops - {"tests"} <= set(copied()), tops


def test_cargo_can_plan_the_build_from_what_is_copied(tmp_path):
    if not shutil.which("cargo"):
        pytest.skip("skipped because there is no cargo")
    for source in copied():
        path = ROOT / source
        (tmp_path / source).symlink_to(path, target_is_directory=path.is_dir())
    planned = subprocess.run(["cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version", "1"],
                             cwd=tmp_path, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    (package,) = json.loads(planned.stdout)["packages"]
    missing = [target["src_path"] for target in package["targets"] if not Path(target["src_path"]).exists()]
    assert not missing
    assert any(target["name"] == "chatfn" and "bin" in target["kind"] for target in package["targets"])


def test_the_compiler_and_node_are_new_enough():
    arguments = dict(rest.split("=") for instruction, rest in LINES if instruction == "ARG")
    wanted = re.search(r'^rust-version = "(\S+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert [int(part) for part in arguments["RUST"].split(".")] >= [int(part) for part in wanted.split(".")]
    least = int(re.search(r"NODE_MAJOR_MIN: u32 = (\d+)", (ROOT / "src" / "host.rs").read_text())[1])
    assert int(arguments["NODE"]) >= least
    # Debian's release and its number, for the images name it one way and the other.
    assert (arguments["DEBIAN"], "debian12" in TEXT) == ("bookworm", True)


def test_the_image_has_what_install_scripts_find():
    source = (ROOT / "src" / "sandbox" / "root.rs").read_text()
    programs = re.findall(r'"([^"]+)"', re.search(r"SCRIPT_PROGRAMS: .*? = \[(.*?)\]", source)[1])
    targets = [rest.split()[-1] for rest in of_last("COPY")]
    assert programs and set(programs) <= set(targets)


def test_the_last_stage_runs_nothing_and_is_nobody_special():
    assert not of_last("RUN") and not of_last("ADD")
    assert of_last("USER") == ["1000:1000"]
    pod = rendered_case("restricted").pod["securityContext"]
    assert of_last("USER") == [f"{pod['runAsUser']}:{pod['runAsGroup']}"]
    assert sorted(of_last("EXPOSE")[0].split()) == [str(port["containerPort"]) for port in rendered_case("shared").container["ports"]]


def test_the_entry_point_is_the_program_that_is_copied():
    (entry,) = json.loads(of_last("ENTRYPOINT")[0])
    assert any(rest.split()[-1] == entry for rest in of_last("COPY"))
    assert entry.rsplit("/", 1)[1] == "chatfn"
    (command,) = of_last("CMD")
    assert json.loads(command)[0] == "serve"
    # helm test names Node by its path.
    node = rendered_case("tls").of("Pod")[0]["spec"]["containers"][0]["command"][0]
    assert node == "/usr/local/bin/node"


@pytest.mark.parametrize("arguments", ["image", "server", "test", "migrate"])
def test_the_program_knows_the_arguments(arguments, tmp_path):
    chatfn = binary()
    if chatfn is None:
        pytest.skip("skipped because target/debug/chatfn is not built yet")
    release = rendered_case("shared")
    given = {
        "image": json.loads(of_last("CMD")[0]),
        "server": release.container["args"],
        "test": release.of("Pod")[0]["spec"]["containers"][0]["args"],
        "migrate": release.of("Job")[0]["spec"]["template"]["spec"]["containers"][0]["args"],
    }[arguments]
    # The command alone, for with --help an unknown one shows everything's help.
    words = [word for word in given if not word.startswith(("-", "/", "http")) and not re.match(r"[\d.]+:", word)]
    shown = subprocess.run([chatfn, *words, "--help"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert shown.returncode == 0, shown.stderr
    for flag in (word for word in given if word.startswith("--")):
        assert re.search(rf"(^|[ ,]){flag} <", shown.stdout, re.M), flag


def test_ignoring_hides_secrets_and_builds():
    patterns = (ROOT / ".containerignore").read_text().split()
    for path in (".git", "target", "chatfn-data", ".env", "node_modules"):
        assert not any(pattern.startswith("!") and fnmatch(path, pattern[1:]) for pattern in patterns)
