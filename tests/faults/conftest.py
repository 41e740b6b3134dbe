"""How many trials there are: few in ``make test``, all in ``make test-faults``."""

import pytest


@pytest.fixture
def trials(request):
    """How many trials to make of a kind: ``trials(few, all)``."""
    return lambda few, many: many if request.config.getoption("faults") else few
