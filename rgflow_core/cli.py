"""What the command lines share: knobs stated once, devices, one-line errors.

A command states its knobs as a frozen pydantic dataclass. Each field is a flag, its type the
rule, its description the help; a field without a default is a positional argument::

    @dataclass(frozen=True, config=cli.STRICT)
    class Settings:
        epochs: cli.Count = cli.knob(60, "passes through the data")

    settings, typed = cli.parse(Settings, "Train a model.")
"""

import argparse
import signal
import sys
from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import numpy as np
import torch
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from rgflow_core import checkpoints
from rgflow_core.errors import UserError, explain
from rgflow_core.files import check_writable
from rgflow_core.model import PictureModel
from rgflow_core.priors import NAMES

Knobs = TypeVar("Knobs")
STRICT = ConfigDict(strict=True, extra="forbid")
# numpy's numbers as Python's
_PLAIN = BeforeValidator(lambda value: value.item() if isinstance(value, np.generic) else value)
Count = Annotated[int, Field(ge=1, lt=2**31), _PLAIN]
Whole = Annotated[int, Field(ge=0, lt=2**31), _PLAIN]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), _PLAIN]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _PLAIN]


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:  # "" would be the folder where the command runs
        raise ValueError("must be a text of at least one character")
    return value


# pydantic's own text cannot hold a file's name that is not UTF-8.
Name = Annotated[Any, AfterValidator(_name)]


def one_of(names: Collection[str]) -> type[str]:
    """The type of a text that is one of ``names``, which may grow after import."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    check.names = names
    return Annotated[str, AfterValidator(check)]


def knob(default: object, text: str) -> Any:
    """A field of a command's knobs: its default, and its help."""
    return Field(default, description=text)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def _add_flag(parser: Parser, name: str, field: FieldInfo) -> None:
    text, default, how = field.description, field.default, {}
    if field.is_required():
        parser.add_argument(name, metavar=name.upper(), help=text)
        return
    optional = (getattr(kind, "__metadata__", ()) for kind in get_args(field.annotation))
    for rule in chain(field.metadata, *optional):
        if names := getattr(getattr(rule, "func", None), "names", ()):
            text += f" ({', '.join(names)})"
    if field.annotation is bool:
        how = {"action": argparse.BooleanOptionalAction}
    elif isinstance(default, tuple):
        how, default = {"nargs": "+"}, " ".join(map(str, default))
    if default is not None and default is not False:
        text += f" (default: {default})"
    parser.add_argument(_flag(name), default=argparse.SUPPRESS, help=text, **how)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(
    kind: type[Knobs], description: str, argv: list[str] | None = None
) -> tuple[Knobs, dict[str, Any]]:
    """The knobs of a command, a pydantic dataclass, and those of them that were typed.

    Raises:
        UserError: names the flag, what is allowed and what was given.
    """
    parser = Parser(description)
    for name, field in kind.__pydantic_fields__.items():
        _add_flag(parser, name, field)
    given = vars(parser.parse_args(argv))
    try:
        knobs = TypeAdapter(kind).validate_python(given, strict=False)  # numbers come as text
    except ValidationError as error:
        raise UserError(explain(error, _flag)) from None
    return knobs, {name: getattr(knobs, name) for name in given}


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" takes a GPU if there is one.

    Raises:
        UserError: if the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        # MPS has no float64, and device meta no values.
        torch.empty(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); try cpu") from None
    return device


@dataclass(frozen=True, config=STRICT)
class ModelFile:
    """Knobs of a command that uses a model."""

    file: Name = Field(
        description="our .safetensors, a training checkpoint, or either published layout"
    )
    prior: one_of(NAMES) | None = knob(None, "prior, if the file does not say")
    seed: Whole = knob(0, "of the random numbers")
    device: Name = knob("auto", "auto, cpu, cuda, cuda:1, ...")

    def load(self) -> PictureModel:
        """The model, on its device."""
        return checkpoints.load(self.file, self.prior).to(pick_device(self.device))


def new_file(name: str) -> Path:
    """A file to write; :class:`UserError` before any work if it exists or cannot be written."""
    path = Path(name)
    if path.exists():
        raise UserError(f"{path} exists; give another name with --out, nothing is overwritten")
    check_writable(path.parent)
    return path


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0, or one line and 2 for what a user can put right.

    130 after Ctrl-C and 143 after SIGTERM; any other error is ours and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: what a locale cannot write
    try:
        main()
    except (UserError, ValidationError, OSError) as error:
        print("error: " + explain(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
