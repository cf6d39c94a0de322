"""EVA's start (arXiv 2410.07170): LoRA's A from the activations on the first training rows."""

from collections.abc import Sequence
from typing import Any

from peft import initialize_lora_eva_weights


def start_eva(model: Any, batches: Sequence[dict[str, Any]]) -> None:
    """Have PEFT start a fresh LoRA whose `init_lora_weights` is `eva`: the leading right singular
    vectors of each layer's inputs, and ranks shared out by how much of them these explain.

    Args:
        batches: of training rows, as the training loop has them.
    """
    initialize_lora_eva_weights(model, list(batches), show_progress_bar=False)
