"""The embedded model as it is asked, and prompts for it."""

from osora_bench.common import paths
from osora_bench.evaluation.in_memory_model import InMemoryModel

TOY = str(paths.resolve("pkg://osora_bench.toy/model"))


def wrapped(toy, batch_size=None, chat=True, **settings):
    return InMemoryModel(*toy, chat=chat, batch_size=batch_size, label="test", **settings)


def prompts(n=24):
    """Prompts of many lengths."""
    return [f"Add {10 + i} and {20 + i}." + " Now." * (i % 7) for i in range(n)]
