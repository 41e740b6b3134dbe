"""What pyproject.toml and requirements.lock say agrees; the core stands alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINES = (ROOT / "requirements.lock").read_text("utf-8").split("\n")
LOCK = [Requirement(line) for line in LINES if line.partition("#")[0].strip()]
DIRECT = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])


def locked(name):
    """The versions of a package, several where they depend on the platform; and the one here."""
    rows = [r for r in LOCK if canonicalize_name(r.name) == canonicalize_name(name)]
    pins = {r: Version(str(r.specifier).removeprefix("==")) for r in rows}
    (here,) = (pin for r, pin in pins.items() if r.marker is None or r.marker.evaluate())
    return list(pins.values()), here


def test_lock_has_only_exact_pins():
    assert all(re.fullmatch(r"==[^*,]+", str(requirement.specifier)) for requirement in LOCK)


each_direct = pytest.mark.parametrize("direct", [*map(Requirement, DIRECT)], ids=lambda r: r.name)


@each_direct
def test_direct_dependency_is_locked(direct):
    versions, _ = locked(direct.name)
    assert all(direct.specifier.contains(version, prereleases=True) for version in versions)


@pytest.mark.skipif(
    Path(sys.prefix).name not in (".venv", "rgflow"),
    reason="not the environment of make setup or of environment.yml",
)
@each_direct
def test_direct_dependency_is_installed_as_locked(direct):
    _, here = locked(direct.name)
    # The public part: a build's own label, as in 2.14.1+cpu, is the same version.
    assert Version(metadata.version(direct.name)).public == str(here)


def test_cuda_packages_are_for_linux_only():
    cuda = [r for r in LOCK if re.match("nvidia-|cuda-|triton$", canonicalize_name(r.name))]
    assert cuda
    for platform in ("darwin", "win32"):
        assert not any(
            r.marker is None or r.marker.evaluate({"sys_platform": platform}) for r in cuda
        )


# Each imports only those before it.
ORDER = """errors noise pixels dequantiser couplings networks flow priors files model checkpoints ellipses
msds pictures datasets cli muon evaluate sample running train __init__"""


@pytest.mark.parametrize("path", sorted((ROOT / "rgflow_core").glob("*.py")), ids=lambda p: p.stem)
def test_core_imports_no_study_and_only_what_is_below(path):
    names = set()  # imported anywhere in the file; ``from rgflow_core import x`` is two
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {name for name in names if name.split(".")[0] in ("study", "notebooks")}
    own = {name.split(".")[1] for name in names if name.startswith("rgflow_core.")}
    order = ORDER.split()
    above = own & set(order[order.index(path.stem) :])
    assert not above, f"{path.stem} must not import {above}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that a copy of the repository gives."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "rgflow_core", "notebooks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run = subprocess.run([*command, "-w", "w", "."], cwd=place, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return next((place / "w").glob("*.whl"))


def test_the_wheel_holds_the_core_alone(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"rgflow_core"}


def needed(*left):
    """What distributions need to be installed, however far down, themselves included."""
    there, names = {canonicalize_name(d.name) for d in metadata.distributions()}, set()
    while left:
        name, *left = map(canonicalize_name, left)
        if name in there - names:
            names.add(name)
            wants = map(Requirement, metadata.requires(name) or ())
            left += [r.name for r in wants if r.marker is None or r.marker.evaluate({"extra": ""})]
    return names


USE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Installed]
sys.path.insert(0, WHEEL)
import rgflow_core
assert "torchvision" not in sys.modules, "importing the package stays light"
from rgflow_core import train

assert rgflow_core.__file__.startswith(WHEEL)
assert rgflow_core.load(WEIGHTS).sample(2).shape == (2, 3, 32, 32)
tiny = {"model": "lean", "epochs": 1, "batch_size": 4, "train_images": 12, "val_images": 4}
train.train(train.Settings(**tiny, data_root="data"), "run")
"""


def test_the_wheel_works_with_only_its_own_dependencies(wheel, tmp_path):
    own = needed(*(Requirement(text).name for text in PROJECT["dependencies"]))
    blocked = {
        top
        for top, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & own and top != "rgflow_core"
    }
    assert {"pandas", "papermill", "IPython", "yaml"} <= blocked
    code = f"BLOCKED = {blocked | {'study'}!r}\nWHEEL = {str(wheel)!r}\n"
    code += f"WEIGHTS = {str(ROOT / 'weights' / 'msds1_laplace.safetensors')!r}\n{USE}"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_no_tracked_text_file_names_a_registry_host():
    hosts = [r"pypi\.org", r"pythonhosted\.org", r"registry\.npmjs", r"registry\.yarnpkg"]
    hosts += [r"anaconda\.org", r"download\.pytorch\.org/whl", r"deb\.debian\.org"]
    command = ["git", "grep", "-I", "-l", "-E", "|".join(hosts)]  # dots escaped: not this file
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("git does not search this checkout")
    assert found.stdout == ""
