"""The designs that were tried for OSoRA's layer, measured on the two layers of one block.

    python benchmarks/osora_designs.py --hidden 1024 --rounds 100

Forward and backward of q_proj and v_proj on one input, smallest and median time of many rounds in
turn, and the time beyond the frozen layers'. The first is the one in the package.

- package: B formed from U, S, O by autograd's own operations; one addmm on the base's output
- linear: two F.linear and a sum
- function: a custom autograd function that recomputes B in its backward pass
- fused: the same, with the frozen product inside, so that no sum is a pass of its own
- merged: W0 + B V^T formed for each forward pass and again for the backward pass, kept by neither
- formed: W0 + B V^T formed once (accumulation: used for --accumulate passes) in place of W0; only
  the two products for dS and dO are left
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from osora_bench.osora import Linear, OsoraConfig

NAME = "default"


def change(u: Tensor, s: Tensor, s0: Tensor, o: Tensor) -> Tensor:
    """B for O on the output, started at ones."""
    return u * (torch.stack((o, o - 1), 1) @ torch.stack((s - s0, s0)))


def gradients(g: Tensor, h: Tensor, u: Tensor, s: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """dS and dO from one product."""
    product = (g.T @ h).mul_(u)
    return o @ product, product @ s


class Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, *state: Tensor) -> Tensor:
        u, v, s, s0, o = state
        h = x @ v.T
        ctx.save_for_backward(h, *state)
        return torch.addmm(base, h, change(u, s, s0, o).T)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, u, v, s, s0, o = ctx.saved_tensors
        d_s, d_o = gradients(g, h, u, s, o)
        return (g @ change(u, s, s0, o)) @ v, g, None, None, d_s, None, d_o


class Fused(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, *state: Tensor) -> Tensor:
        u, v, s, s0, o = state
        h = x @ v.T
        ctx.save_for_backward(h, w, *state)
        return (x @ w.T).addmm_(h, change(u, s, s0, o).T)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, w, u, v, s, s0, o = ctx.saved_tensors
        d_s, d_o = gradients(g, h, u, s, o)
        return (g @ w).addmm_(g @ change(u, s, s0, o), v), None, None, None, d_s, None, d_o


class Merged(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, *state: Tensor) -> Tensor:
        u, v, s, s0, o = state
        ctx.save_for_backward(x @ v.T, w, *state)
        return x @ torch.addmm(w, change(u, s, s0, o), v).T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, w, u, v, s, s0, o = ctx.saved_tensors
        d_s, d_o = gradients(g, h, u, s, o)
        return g @ torch.addmm(w, change(u, s, s0, o), v), None, None, None, d_s, None, d_o


class Formed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, formed: Tensor, *state: Tensor) -> Tensor:
        u, v, s, _, o = state
        ctx.save_for_backward(x, formed, u, v, s, o)
        return x @ formed.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, formed, u, v, s, o = ctx.saved_tensors
        d_s, d_o = gradients(g, x @ v.T, u, s, o)
        return g @ formed, None, None, None, d_s, None, d_o


def state(layer: Linear) -> tuple[Tensor, ...]:
    return tuple(
        getattr(layer, f"osora_{n}")[NAME] for n in ("U", "V", "S", "S0", "O")
    )  # fmt: skip


def linear(layer: Linear, x: Tensor) -> Tensor:
    a, b = layer.lora_factors(NAME)
    return layer.base_layer(x) + F.linear(F.linear(x, a), b)


def formed(layer: Linear, x: Tensor) -> Tensor:
    if getattr(layer, "cached", None) is None:
        with torch.no_grad():
            u, v, s, s0, o = state(layer)
            layer.cached = torch.addmm(layer.base_layer.weight, change(u, s, s0, o), v)
    return Formed.apply(x, layer.cached, *state(layer))


DESIGNS: dict[str, Callable[[Linear, Tensor], Tensor]] = {
    "package": lambda layer, x: layer(x),
    "linear": linear,
    "function": lambda layer, x: Recomputed.apply(x, layer.base_layer(x), *state(layer)),
    "fused": lambda layer, x: Fused.apply(x, layer.base_layer.weight, *state(layer)),
    "merged": lambda layer, x: Merged.apply(x, layer.base_layer.weight, *state(layer)),
    "formed": formed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, value in {
        "hidden": 1024, "tokens": 512, "rounds": 60, "accumulate": 4, "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{flag}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = args.hidden
    base = nn.ModuleDict(
        {"q": nn.Linear(size, size, bias=False), "v": nn.Linear(size, size // 4, bias=False)}
    ).requires_grad_(False)

    def adapted(config: Any) -> nn.Module:
        return peft.get_peft_model(copy.deepcopy(base), config).base_model.model

    rank = size // 8
    osora = adapted(OsoraConfig(r=rank, target_modules=["q", "v"]))
    lora = adapted(peft.LoraConfig(r=16, lora_alpha=16, target_modules=["q", "v"]))
    vera = adapted(peft.VeraConfig(r=rank, target_modules=["q", "v"]))
    runs: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor]]] = {
        "frozen layers": (base, lambda layer, x: layer(x)),
        "LoRA 16": (lora, lambda layer, x: layer(x)),
        f"VeRA {rank}": (vera, lambda layer, x: layer(x)),
        **{name: (osora, design) for name, design in DESIGNS.items()},
    }
    x0 = torch.randn(args.tokens, size)
    goals = {n: torch.randn(args.tokens, m.out_features) for n, m in base.items()}

    def step(model: nn.Module, design: Callable[[Any, Tensor], Tensor]) -> float:
        start = time.perf_counter()
        for _ in range(args.accumulate):
            x = x0.clone().requires_grad_(True)
            torch.autograd.backward([design(model[n], x) for n in goals], list(goals.values()))
        for n in goals:
            model[n].cached = None
        return (time.perf_counter() - start) / args.accumulate * 1e3

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(step(*run))
    frozen = min(times["frozen layers"])
    print(f"hidden {size}, {args.tokens} tokens, rank {rank}, accumulation {args.accumulate}, "
          f"{args.threads} thread(s)")  # fmt: skip
    for name, values in times.items():
        print(f"{name:14s} smallest {min(values):7.2f} ms  median {statistics.median(values):7.2f} "
              f"ms  beyond the frozen layers {min(values) - frozen:6.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
