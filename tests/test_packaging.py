"""What pyproject.toml, requirements.lock and environment.yml say agrees with each other."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
# The dots are escaped, so this file's own text does not match.
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|registry\.yarnpkg|anaconda\.org"
    r"|download\.pytorch\.org/whl|deb\.debian\.org"
)


def lock_lines() -> list[str]:
    lines = (line.strip() for line in LOCK_FILE.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def locked_requirements() -> dict[str, list[Requirement]]:
    """By name; one package has several lines where its version depends on the platform."""
    found: dict[str, list[Requirement]] = {}
    for line in lock_lines():
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def locked_version(requirement: Requirement) -> Version:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return Version(pin.version)


def version_here(name: str) -> Version:
    """The version that the lock has for the running python and platform."""
    (here,) = (
        requirement
        for requirement in locked_requirements()[canonicalize_name(name)]
        if requirement.marker is None or requirement.marker.evaluate()
    )
    return locked_version(here)


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in sum(extras.values(), PROJECT["dependencies"])]


DIRECT = [pytest.param(requirement, id=requirement.name) for requirement in direct_dependencies()]


def test_lock_has_only_exact_pins() -> None:
    assert lock_lines()
    for line in lock_lines():
        requirement = Requirement(line)
        assert requirement.url is None, line
        assert [pin.operator for pin in requirement.specifier] == ["=="], line
        assert "*" not in str(requirement.specifier), line


def test_lock_names_no_index() -> None:
    text = LOCK_FILE.read_text("utf-8")
    assert "://" not in text
    assert "index-url" not in text
    assert "find-links" not in text


def test_lock_says_how_it_is_made() -> None:
    head = LOCK_FILE.read_text("utf-8").partition("==")[0]
    assert "uv pip compile pyproject.toml" in head
    assert "--universal" in head
    for extra in PROJECT["optional-dependencies"]:
        assert f"--extra {extra}" in head


@pytest.mark.parametrize("direct", DIRECT)
def test_direct_dependency_is_locked(direct: Requirement) -> None:
    locked = locked_requirements().get(canonicalize_name(direct.name))
    assert locked, f"{direct.name} is not in requirements.lock"
    for requirement in locked:
        assert direct.specifier.contains(locked_version(requirement), prereleases=True)


def test_cuda_packages_are_for_linux_only() -> None:
    cuda = {
        name: requirements
        for name, requirements in locked_requirements().items()
        if name.startswith(("nvidia-", "cuda-")) or name == "triton"
    }
    assert cuda
    for requirements in cuda.values():
        for requirement in requirements:
            assert requirement.marker is not None, requirement
            for platform in ("darwin", "win32"):
                assert not requirement.marker.evaluate({"sys_platform": platform}), requirement


def test_torch_and_torchvision_are_the_pair() -> None:
    assert [str(version_here(name)) for name in ("torch", "torchvision")] == ["2.14.1", "0.29.1"]
    assert Version(metadata.version("torch")).release[:2] >= (2, 11)


@pytest.mark.skipif(Path(sys.prefix).name != ".venv", reason="not the project's own environment")
@pytest.mark.parametrize("direct", DIRECT)
def test_environment_has_the_locked_version(direct: Requirement) -> None:
    # The public part: a build's own label, as in 2.14.1+cpu, is the same version.
    installed = Version(metadata.version(direct.name)).public
    assert installed == str(version_here(direct.name))


def test_environment_yml_uses_the_lock() -> None:
    assert ENVIRONMENT["name"] == "rgflow"
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    (pip,) = (entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    assert pip == [f"-r {LOCK_FILE.name}", "-e ."]


def test_environment_yml_states_no_version_but_pythons() -> None:
    conda = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    (python,) = (entry for entry in conda if entry.startswith("python"))
    assert [entry for entry in conda if entry != python] == ["pip"]
    name, version = python.split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, rgflow_core\n"
        "heavy = {'torchvision', 'matplotlib', 'scipy', 'IPython'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_registry_pattern_finds_a_host() -> None:
    assert REGISTRY_HOST.search("https://" + "pypi" + ".org/simple")
    assert REGISTRY_HOST.search("https://files." + "pythonhosted" + ".org/packages")
    assert not REGISTRY_HOST.search("pip install torch from conda-forge")


def test_no_tracked_text_file_names_a_registry_host() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("git does not list this checkout")
    found = []
    for name in listing.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        text = content.decode("utf-8", errors="replace")
        found += [f"{name}: {host}" for host in REGISTRY_HOST.findall(text)]
    assert found == []
