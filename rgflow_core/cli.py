"""What the command lines share: argument types, devices, one-line errors."""

import argparse
import math
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from rgflow_core.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def count(text: str) -> int:
    """A whole number from 1 to 2^31 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1 and < 2^31, not {text!r}")
    return value


def file_name(text: str) -> str:
    """A name that is not empty: an empty one would be the folder where the command runs."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file or folder, not ''")
    return text


def positive(text: str) -> float:
    """A finite number > 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number > 0, not {text!r}")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2^31 - 1."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^31 - 1, not {text!r}")
    return int(text)


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" takes a GPU if there is one.

    Raises:
        UserError: if the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # of device meta there is no value
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); try cpu") from None
    return device


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(143)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0, or one line and 2 for bad input, 130 or 143 when stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
