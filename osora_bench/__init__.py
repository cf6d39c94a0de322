"""A reproducible benchmark harness for parameter-efficient fine-tuning, built around OSoRA."""

NUMERICS_VERSION = 1
"""Raised when a fix changes results: part of every run id, so old records stay what they were."""
