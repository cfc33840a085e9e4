"""The page's code: lint, types, size."""

import json
import re
import subprocess

import webpage

WEB = webpage.ROOT / "web"
OURS = sorted(path for path in WEB.glob("*.js") if path.name != "eslint.config.js")


def test_lint_and_types():
    webpage.install()
    done = subprocess.run(["npm", "run", "--silent", "lint"], cwd=WEB, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_little_of_it():
    """Under 500 lines; comments, which hold the types, and empty ones don't count."""
    code = "\n".join(path.read_text() for path in OURS)
    bare = re.sub(r"^\s*/\*\*.*?\*/\s*$|^\s*//.*$", "", code, flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in bare.splitlines() if line.strip()]) < 500


def test_nothing_is_loaded_from_elsewhere_and_all_versions_are_pinned():
    for path in (*OURS, *WEB.glob("*.html"), *WEB.glob("*.css")):
        assert not re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+/", re.sub("http://www.w3.org", "", path.read_text())), (
            path
        )
    package = json.loads((WEB / "package.json").read_text())
    versions = {**package["dependencies"], **package["devDependencies"]}
    assert all(re.fullmatch(r"[\d.]+", version) for version in versions.values())
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in versions} == versions
