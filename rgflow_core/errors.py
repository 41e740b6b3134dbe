"""The one error for what a user can put right."""


class UserError(ValueError):
    """Bad input, or a missing or damaged file: the message says what to do."""
