"""A package, so that whatever several test files use is imported as `tests.NAME`."""
