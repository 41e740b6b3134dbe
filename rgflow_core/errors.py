"""The one error for what a user can put right, and errors in one line."""

from collections.abc import Callable
from numbers import Integral

from pydantic import ValidationError


class UserError(ValueError):
    """Bad input, or a missing or damaged file: the message says what to do.

    What cannot be printed, as in a file name that is not UTF-8, is shown escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: object) -> str:
    """A text in one line, what cannot be printed escaped."""

    def shown(c: str) -> str:
        escaped = c.encode("unicode_escape").decode()
        return c if c.isprintable() else " " if c.isspace() else escaped

    return "".join(map(shown, str(text)))


def check_counts(least: int = 1, /, **numbers: object) -> list[int]:
    """The numbers as Python's: numpy's fit neither torch nor JSON.

    Raises:
        UserError: for the first that is not a whole number >= ``least``, by its name.
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} must be a whole number >= {least}, not {value!r}")
    return [int(value) for value in numbers.values()]


def explain(error: Exception, name: Callable[[str], str] = str) -> str:
    """One line: what an error says; of pydantic's: what is wrong, what is allowed, what was given.

    ``name`` says how to name a field.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    return "; ".join(
        f"{name(str(next(iter(problem['loc']), error.title)))}: "
        f"{problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"
        for problem in error.errors(include_url=False)
    )
