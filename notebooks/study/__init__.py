"""The study: its runs, analyses, figures and report. It imports rgflow_core, never the reverse."""

import rgflow_core  # noqa: F401  before torch: it says how waiting threads behave
