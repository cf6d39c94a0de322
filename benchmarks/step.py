"""Cost of a training step of OSoRA beside PEFT's own methods, in one process.

    python -m benchmarks.step hidden=2048 layers=1 checkpointing=True

A Llama of 7B-like proportions (grouped key-value heads, q_proj and v_proj adapted) scaled down.
The limit is the ratio of the products that must be done, the adapter's and the frozen weights'.
"""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.rows import Row, in_turns, row, run, seconds
from osora_bench.osora import OsoraConfig

TARGETS = ["q_proj", "v_proj"]
PAIRS = [
    ("OSoRA", "VeRA", 1.02),
    ("OSoRA", "LoRA 16", 1.02),
    ("OSoRA+DoRA", "OSoRA", 1.06),
    ("LoRA 16+DoRA", "LoRA 16", None),
]
"""Two methods, and at most how many times the second's step the first's may take."""


@dataclass(frozen=True)
class Setting:
    """The model that is trained, and how."""

    hidden: int
    layers: int
    tokens: int
    accumulate: int
    checkpointing: bool

    @property
    def rank(self) -> int:
        """Of OSoRA and VeRA: hidden / 8, as 512 is to 4096."""
        return self.hidden // 8

    def base(self) -> LlamaForCausalLM:
        """A random model."""
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=1024, hidden_size=self.hidden, intermediate_size=7 * self.hidden // 2,
                num_hidden_layers=self.layers, num_attention_heads=self.hidden // 128,
                num_key_value_heads=max(1, self.hidden // 512), use_cache=False,
            )
        )  # fmt: skip


def configurations(rank: int) -> dict[str, Any]:
    """The methods by their names."""
    lora: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": TARGETS}
    osora: dict[str, Any] = {"r": rank, "target_modules": TARGETS}
    return {
        "LoRA 16": peft.LoraConfig(**lora),
        "LoRA 16+DoRA": peft.LoraConfig(**lora, use_dora=True),
        "VeRA": peft.VeraConfig(r=rank, target_modules=TARGETS),
        "OSoRA": OsoraConfig(**osora),
        "OSoRA+DoRA": OsoraConfig(**osora, use_dora=True),
    }


class Trained:
    """A model under one method, with its optimiser."""

    def __init__(self, base: nn.Module, config: Any, setting: Setting) -> None:
        # parameters of the base are shared between the methods: they are never changed
        memo = {id(p): p for p in base.parameters()}
        self.model = peft.get_peft_model(copy.deepcopy(base, memo), config).train()
        if setting.checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.accumulate = setting.accumulate
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 1024, (1, setting.tokens), generator=generator)

    def step(self) -> None:
        """One optimiser step."""
        for _ in range(self.accumulate):
            self.model(input_ids=self.ids, labels=self.ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def adapter_products(name: str, setting: Setting, shapes: list[Any]) -> float:
    """Floating-point operations of an adapter's matrix products in one pass and its step.

    Forward twice under gradient checkpointing; backward to the input, and for LoRA to A and B, for
    OSoRA to B; VeRA's vectors need no product of their own.
    """
    r = 16 if name.startswith("LoRA") else setting.rank
    forward = sum(2 * setting.tokens * r * (out + inner) for out, inner in shapes)
    to_b = sum(2 * setting.tokens * r * out for out, _ in shapes)
    own = {"VeRA": 0.0, "LoRA 16": forward, "LoRA 16+DoRA": forward}.get(name, to_b)
    return forward * (3 if setting.checkpointing else 2) + own


def base_products(model: LlamaForCausalLM, setting: Setting) -> float:
    """Operations of the frozen model: forward (twice under checkpointing), backward to inputs."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 2 * 2 * setting.tokens**2 * setting.hidden * setting.layers
    again = 1 if setting.checkpointing else 0
    return (2 + again) * 2 * setting.tokens * linear + (3 + again) * attention


def rows(
    *,
    hidden: int = 1024,
    layers: int = 2,
    tokens: int = 512,
    accumulate: int = 1,
    checkpointing: bool = False,
    pairs: int = 12,
) -> Iterator[Row]:
    """`tokens` of the one row of a pass, `accumulate` passes a step."""
    setting = Setting(hidden, layers, tokens, accumulate, checkpointing)
    base = setting.base()
    shapes = [
        tuple(m.weight.shape) for n, m in base.named_modules() if n.rpartition(".")[2] in TARGETS
    ]
    whole = base_products(base, setting)
    models = {n: Trained(base, c, setting) for n, c in configurations(setting.rank).items()}
    total = {n: whole + adapter_products(n, setting, shapes) for n in models}
    for model in models.values():
        model.step()
    for a, b, most in PAIRS:
        times = in_turns(
            lambda a=a: seconds(models[a].step), lambda b=b: seconds(models[b].step), pairs
        )
        both = " / ".join(f"{1000 * statistics.median(one):.0f}" for one in times)
        # neighbours in A B B A together, so that a drift cancels
        sums = [[x + y for x, y in zip(one[::2], one[1::2], strict=True)] for one in times]
        ratios = [x / y for x, y in zip(*sums, strict=True)]
        yield row(
            f"step, {a} / {b}: time, hidden {hidden}" + (", checkpointing" * checkpointing),
            ratios, total[a] / total[b], f"{both} ms", at_most=most,
        )  # fmt: skip


if __name__ == "__main__":
    run(rows)
