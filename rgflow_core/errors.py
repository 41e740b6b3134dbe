"""The one error for what a user can put right."""


class UserError(ValueError):
    """Bad input, or a missing or damaged file: the message says what to do."""


def check_counts(**numbers: object) -> None:
    """Raise :class:`UserError` for the first that is not a whole number >= 1, by its name."""
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number >= 1, not {value!r}")
