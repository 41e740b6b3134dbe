"""The one error for what a user can put right, and errors in one line."""

from collections.abc import Callable

from pydantic import ValidationError


class UserError(ValueError):
    """Bad input, or a missing or damaged file: the message says what to do."""


def check_counts(**numbers: object) -> None:
    """Raise :class:`UserError` for the first that is not a whole number >= 1, by its name."""
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number >= 1, not {value!r}")


def explain(error: Exception, name: Callable[[str], str] = str) -> str:
    """One line: what an error says; of pydantic's: what is wrong, what is allowed, what was given.

    Args:
        error: any error.
        name: how to name a field.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    return "; ".join(
        f"{name(str(next(iter(problem['loc']), error.title)))}: "
        f"{problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"
        for problem in error.errors(include_url=False)
    )
