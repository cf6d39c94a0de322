"""Rows -> an adapter."""
