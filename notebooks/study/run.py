"""Run a notebook of the study headless: ``python -m study.run NOTEBOOK --profile PROFILE``.

Its parameters are those of ``notebooks/profiles.yaml``, its working directory is ``notebooks/``.
The executed copy, ``runs/PROFILE/NOTEBOOK.ipynb``, appears when it is done; until then it has
this process's number in its name. With ``--model SET_PRIOR`` both names end in the model's.
"""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TextIO

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from rgflow_core import cli
from rgflow_core.errors import UserError
from rgflow_core.files import refusing_damage
from study import results

PROFILES = "notebooks/profiles.yaml"


class Prefixed:
    """A text stream whose lines say which notebook they come from: two run at once."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self.stream, self.prefix, self.rest = stream, prefix, ""

    def write(self, text: str) -> None:
        # A bar drawn over and over counts as one line, its last state.
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.stream.write(f"{self.prefix}: {line.rpartition(chr(13))[2]}\n")
        self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        """Write a last line that has no line break."""
        if self.rest:
            self.write("\n")


def accepted(path: Path) -> set[str]:
    """The names of a notebook's parameters; :class:`UserError` if the file is no notebook."""
    with refusing_damage(path, "a notebook"):
        return set(papermill.inspect_notebook(path))


def parameters(notebook: str, profile: str, model: str | None = None) -> dict:
    """What a profile gives a notebook, of ``PROFILES`` and of its own folders.

    Raises:
        UserError: for a profile that does not exist, or a parameter that the notebook has not.
    """
    names = accepted(results.root() / "notebooks" / f"{notebook}.ipynb")
    profiles = yaml.safe_load((results.root() / PROFILES).read_text("utf-8"))
    if profile not in profiles:
        raise UserError(f"profile must be one of {', '.join(profiles)}, not {profile!r}")
    out, own = f"runs/{profile}", profiles[profile].get(notebook, {})
    if unknown := own.keys() - names:
        raise UserError(f"{PROFILES}: {notebook} has no parameters {', '.join(sorted(unknown))}")
    places = {"out": out, "weights": profiles[profile].get("weights", f"{out}/models")}
    if model:
        places["dataset"], places["prior"] = results.split_name(model)
    return {name: value for name, value in places.items() if name in names} | own


def run(notebook: str, profile: str, model: str | None = None) -> Path:
    """Run a notebook, for SET_PRIOR where it is of one model, and return its executed copy.

    Raises:
        UserError: if it fails: says why, and where it is as far as it came.
    """
    source = results.root() / "notebooks" / f"{notebook}.ipynb"
    given = parameters(notebook, profile, model)
    name = f"{notebook}_{model}" if model else notebook
    done = results.root() / given["out"] / f"{name}.ipynb"
    partial = done.with_suffix(f".partial-{os.getpid()}.ipynb")
    done.parent.mkdir(parents=True, exist_ok=True)
    print(f"== {source} -> {done}", flush=True)
    try:
        with closing(Prefixed(sys.stdout, name)) as lines:
            papermill.execute_notebook(
                source, partial, given, cwd=source.parent, progress_bar=False, start_timeout=600,
                stdout_file=lines, stderr_file=lines,
                extra_arguments=["--log-level=CRITICAL"],  # no notices about ports, shutting down
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename != "UserError":
            lines.write("\n".join([*error.traceback, ""]))
        raise UserError(
            f"notebook {name} failed: {error.evalue}; as far as it came it is in {partial}"
        ) from None
    partial.replace(done)
    return done


def main() -> None:
    parser = cli.Parser("Run a notebook of the study with a profile's parameters.")
    parser.add_argument("notebook", help="its name, as 01_data")
    parser.add_argument("--profile", default="default", help=f"of {PROFILES}")
    parser.add_argument("--model", metavar="SET_PRIOR", help="that it is run for")
    args = parser.parse_args()
    run(args.notebook, args.profile, args.model)


if __name__ == "__main__":
    cli.run(main)
