"""A reproducible benchmark harness for parameter-efficient fine-tuning, built around OSoRA."""
