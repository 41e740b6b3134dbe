"""The study: its runs, analyses, figures and report. It imports rgflow_core, never the reverse."""
