"""The embedded model and tasks: small enough to ship, large enough to show fine-tuning."""
