"""A reproducible benchmark harness for parameter-efficient fine-tuning, built around OSoRA."""

NUMERICS_VERSION = 2
"""Raised when a fix changes results: part of the run id of every cell whose numbers the fix could
change (`planning.identity`), so old records stay what they were."""
