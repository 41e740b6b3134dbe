"""Counts of the trials, and how many of them there are: few in ``make test``, else all."""

from collections import Counter

import pytest

_COUNTS = Counter()


@pytest.fixture
def counts():
    """Count a trial: ``counts(kind, outcome)``."""

    def count(kind: str, outcome: str) -> None:
        _COUNTS[kind, outcome] += 1

    return count


@pytest.fixture
def trials(request):
    """How many trials to make of a kind: ``trials(few, all)``."""
    return lambda few, many: many if request.config.getoption("faults") else few


def pytest_sessionfinish(session, exitstatus):
    path = session.config.getoption("faults")
    if not path or exitstatus:
        return
    from rgflow_core.files import provenance, write_json

    table = {}
    for (kind, outcome), number in sorted(_COUNTS.items()):
        table.setdefault(kind, {})[outcome] = number
    write_json(path, {"counts": table, "provenance": provenance(seed=0)})
