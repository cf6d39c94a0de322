"""Base models and adapters: loading, counting, memory."""
