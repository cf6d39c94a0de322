"""Tests that would go with OSoRA into PEFT's own tree (docs/upstream.md)."""
