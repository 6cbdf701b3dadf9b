"""The table of values in helm/chat-functions/README.md, from the comments in values.yaml.

`scripts/helm-readme` runs this file, which writes the table; test_schema.py compares.
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "chat-functions"
BEGIN = "<!-- values: made from values.yaml by `scripts/helm-readme` -->\n"
END = "<!-- end of values -->"


def documented(text):
    """(group, path, comment) of each commented key, in the order of the file."""
    group, comment, parents = None, [], []
    for line in text.splitlines():
        stripped = line.strip()
        if line.startswith("## "):
            group, comment = line[3:], []
        elif stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
        elif key := re.match(r"( *)([\w.]+):( |$)", line):
            depth = len(key[1]) // 2
            parents = [*parents[:depth], key[2]]
            yield group, tuple(parents), " ".join(comment)
            comment = []
        else:
            comment = []


def leaves(values, documented_paths, path=()):
    """Paths and defaults of what can be set: free maps and lists as a whole."""
    for key, value in values.items():
        own = (*path, key)
        if isinstance(value, dict) and any(other[: len(own)] == own and len(other) > len(own) for other in documented_paths):
            yield from leaves(value, documented_paths, own)
        else:
            yield own, value


def table():
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    comments = {path: (group, comment) for group, path, comment in documented(text)}
    lines, last = [], None
    for path, default in leaves(values, comments):
        group, comment = comments.get(path, (None, ""))
        if not comment:
            sys.exit(f"values.yaml: {'.'.join(path)} has no comment")
        if group != last:
            lines += ["", f"### {group}", "", "| value | default | meaning |", "|---|---|---|"]
            last = group
        comment = comment.replace("|", "\\|")
        lines.append(f"| `{'.'.join(path)}` | {shown(default)} | {comment} |")
    return "\n".join(lines[1:]) + "\n"


def shown(default):
    if default in ("", None, [], {}) and default is not False:
        return "–"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def replaced(readme):
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = CHART / "README.md"
    path.write_text(replaced(path.read_text()))
