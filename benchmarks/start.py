"""Start of an adapter whose decompositions are in the store, beside PEFT's own PiSSA.

    make smollm2
    python -m benchmarks.start

From the second cell of a model on a sweep finds every decomposition in the store. PEFT's PiSSA
makes them anew each time. The limit is PEFT's LoRA on the same layers, which decomposes nothing.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import peft
from transformers import AutoModelForCausalLM

from benchmarks.rows import ROOT, Row, in_turns, need_smollm2, row, run, seconds
from osora_bench.osora import OsoraConfig, start_pissa
from osora_bench.osora.store import SvdStore, use_store

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {"r": 16, "lora_alpha": 16, **TARGETS}


def osora(model: Any) -> None:
    """OSoRA by way of the store."""
    peft.get_peft_model(model, OsoraConfig(r=64, **TARGETS))


def pissa(model: Any) -> None:
    """PiSSA by way of the store."""
    start_pissa(peft.get_peft_model(model, peft.LoraConfig(**LORA)))


def peft_pissa(model: Any) -> None:
    """PEFT's PiSSA."""
    peft.get_peft_model(model, peft.LoraConfig(**LORA, init_lora_weights="pissa"))


def lora(model: Any) -> None:
    """PEFT's LoRA."""
    peft.get_peft_model(model, peft.LoraConfig(**LORA))


def rows(*, pairs: int = 4) -> Iterator[Row]:
    """Times of q_proj and v_proj of all 30 layers of SmolLM2-135M."""
    need_smollm2()
    base = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "smollm2-135m")

    def started(how: Callable[[Any], None]) -> float:
        model = copy.deepcopy(base)
        return seconds(lambda: how(model))

    with tempfile.TemporaryDirectory() as folder, use_store(SvdStore(folder)):
        for name, how in (("OSoRA r=64", osora), ("PiSSA r=16", pissa)):
            started(how)  # fills the store
            ours, plain = in_turns(lambda how=how: started(how), lambda: started(peft_pissa), pairs)
            least = min(started(lora) for _ in range(pairs))
            mine, theirs = statistics.median(ours), statistics.median(plain)
            yield row(
                f"start, {name} from the store, SmolLM2-135M: PEFT's PiSSA / ours",
                [a / b for a, b in zip(plain, ours, strict=True)],
                theirs / least,
                f"{theirs:.2f} / {mine:.2f} s",
            )


if __name__ == "__main__":
    run(rows)
