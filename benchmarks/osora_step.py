"""Cost of a training step of OSoRA beside PEFT's own methods, in one process.

    python benchmarks/osora_step.py --hidden 1024 --layers 3 --pairs 30

A Llama of 7B-like proportions (grouped key-value heads, q_proj and v_proj adapted) scaled down.
Each pair runs A B B A, so that drift of the machine cancels; printed are medians of the ratios with
their quartiles, of wall-clock time and of CPU time, and the floors: the products that the adapters
must do as a share of the whole step's, and the bytes that they keep.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from osora_bench.osora import OsoraConfig

TARGETS = ["q_proj", "v_proj"]
PAIRS = [
    ("OSoRA", "VeRA", 1.02),
    ("OSoRA", "LoRA 16", 1.02),
    ("OSoRA+DoRA", "OSoRA", 1.06),
    ("LoRA 16+DoRA", "LoRA 16", None),
    ("OSoRA_k", "OSoRA", None),
]


def configurations(rank: int) -> dict[str, Any]:
    lora: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": TARGETS}
    osora: dict[str, Any] = {"r": rank, "target_modules": TARGETS}
    return {
        "LoRA 16": peft.LoraConfig(**lora),
        "LoRA 16+DoRA": peft.LoraConfig(**lora, use_dora=True),
        "VeRA": peft.VeraConfig(r=rank, target_modules=TARGETS),
        "OSoRA": OsoraConfig(**osora),
        "OSoRA+DoRA": OsoraConfig(**osora, use_dora=True),
        "OSoRA_k": OsoraConfig(**osora, o_side="input"),
    }


class Trained:
    """A model under one method, with its optimiser."""

    def __init__(self, base: nn.Module, config: Any, args: argparse.Namespace) -> None:
        # parameters of the base are shared between the methods: they are never changed
        memo = {id(p): p for p in base.parameters()}
        self.model = peft.get_peft_model(copy.deepcopy(base, memo), config).train()
        if args.checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.accumulate = args.accumulate
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 1024, (1, args.tokens), generator=generator)

    def step(self) -> tuple[float, float]:
        """Seconds of one optimiser step: wall-clock and CPU."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.accumulate):
            self.model(input_ids=self.ids, labels=self.ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - wall, time.process_time() - cpu


def compare(a: Trained, b: Trained, pairs: int) -> list[tuple[float, float]]:
    """Ratios a / b of wall-clock and CPU time, one for each run of A B B A."""
    a.step(), b.step()
    ratios = []
    for _ in range(pairs):
        times = [model.step() for model in (a, b, b, a)]
        ratios.append(
            tuple((times[0][k] + times[3][k]) / (times[1][k] + times[2][k]) for k in (0, 1))
        )
    return ratios  # type: ignore[return-value]


def saved(trained: Trained) -> int:
    """Bytes that autograd keeps for one forward pass, without parameters and buffers."""
    fixed = {
        t.untyped_storage().data_ptr()
        for t in (*trained.model.parameters(), *trained.model.buffers())
    }
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in fixed:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    # the loss must stay alive: freed memory would be counted twice or not at all
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = trained.model(input_ids=trained.ids, labels=trained.ids).loss
    total = sum(kept.values())
    loss.backward()
    trained.optimizer.zero_grad()
    return total


def frozen(trained: Trained) -> int:
    """Bytes of frozen tensors beyond the base model."""
    seen = {
        b.data_ptr(): b.numel() * b.element_size()
        for name, b in trained.model.named_buffers()
        if "osora_" in name or "vera_" in name
    }
    return sum(seen.values())


def products(name: str, args: argparse.Namespace, rank: int, shapes: list[Any]) -> float:
    """Floating-point operations that an adapter's matrix products need for one pass and its step.

    Forward twice under gradient checkpointing; backward to the input, and for LoRA to A and B, for
    OSoRA to B (to A with O on the input); VeRA's vectors need no product of their own.
    """
    r = 16 if name.startswith("LoRA") else rank
    forward = sum(2 * args.tokens * r * (out + inner) for out, inner in shapes)
    extra = {"VeRA": 0.0, "LoRA 16": float(forward), "LoRA 16+DoRA": float(forward)}
    side = 1 if name == "OSoRA_k" else 0
    own = extra.get(name, sum(2 * args.tokens * r * shape[side] for shape in shapes))
    return forward * (3 if args.checkpointing else 2) + own


def base_products(model: LlamaForCausalLM, args: argparse.Namespace) -> float:
    """Operations of the frozen model: forward (twice under checkpointing), backward to inputs."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 2 * 2 * args.tokens**2 * model.config.hidden_size * model.config.num_hidden_layers
    again = 1 if args.checkpointing else 0
    return (2 + again) * 2 * args.tokens * linear + (3 + again) * attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, value in {
        "hidden": 1024, "layers": 3, "tokens": 512, "pairs": 20, "accumulate": 1, "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--rank", type=int, help="default: hidden / 8, as 512 is to 4096")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--only", type=int, help="index of the one pair to run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rank = args.rank or args.hidden // 8
    shape = LlamaConfig(
        vocab_size=1024, hidden_size=args.hidden, intermediate_size=7 * args.hidden // 2,
        num_hidden_layers=args.layers, num_attention_heads=args.hidden // 128,
        num_key_value_heads=max(1, args.hidden // 512), use_cache=False,
    )  # fmt: skip
    base = LlamaForCausalLM(shape)
    shapes = [
        tuple(m.weight.shape) for n, m in base.named_modules() if n.rpartition(".")[2] in TARGETS
    ]
    models = {name: Trained(base, c, args) for name, c in configurations(rank).items()}
    print(f"hidden {args.hidden}, {args.layers} layers, {args.tokens} tokens, rank {rank}, "
          f"accumulation {args.accumulate}, checkpointing {args.checkpointing}, "
          f"{args.threads} thread(s), torch {torch.__version__}")  # fmt: skip
    flops = {name: products(name, args, rank, shapes) for name in models}
    whole = base_products(base, args)
    print(f"{'method':14s} {'adapter products':>17s} {'kept for backward':>18s} {'frozen':>10s}")
    for name, model in models.items():
        print(f"{name:14s} {flops[name] / whole:16.2%}  {saved(model) / 1e6:14.2f} MB "
              f"{frozen(model) / 1e6:7.2f} MB")  # fmt: skip
    print(f"{'pair':24s} {'wall':>7s} {'quartiles':>15s} {'CPU':>7s} {'quartiles':>15s} "
          f"{'floor':>7s} {'asked':>6s}")  # fmt: skip
    for i, (a, b, asked) in enumerate(PAIRS):
        if args.only is not None and i != args.only:
            continue
        ratios = compare(models[a], models[b], args.pairs)
        cells = []
        for k in (0, 1):
            values = sorted(r[k] for r in ratios)
            low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            cells.append(f"{middle:7.4f} {low:.4f}-{high:.4f}")
        floor = (whole + flops[a]) / (whole + flops[b])
        limit = "" if asked is None else f"{asked:.2f}"
        print(f"{a + ' / ' + b:24s} {cells[0]:>23s} {cells[1]:>23s} {floor:7.4f} {limit:>6s}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
