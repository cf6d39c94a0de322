"""Counting one cell's parameters and bytes with the real PEFT modules, on the meta device.

That device holds shapes and no numbers: nothing is loaded and nothing is downloaded. `expected` is
the closed form of the methods of the paper, for cross-checking.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from textwrap import shorten
from typing import Any
from unittest import mock

import torch
from peft import get_peft_model, get_peft_model_state_dict
from torch import nn

from osora_bench.common.errors import UserError
from osora_bench.models import adapter_config
from osora_bench.models.repetition import Thinned, Unlike, is_layerwise, thinned
from osora_bench.models.skeleton import tied_layers
from osora_bench.planning.adapter_rank import check_rank
from osora_bench.planning.blank import blank
from osora_bench.planning.config import Config, MethodConfig, ModelConfig, plain

ADDED = ("gaussian", "orthogonal", "mica")
"""Starts of PEFT's LoRA that leave the base weights alone."""
SAFETENSORS_TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32",
    torch.complex64: "C64", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
"""In the order of the format's writer, which puts the last first."""


@dataclass(frozen=True)
class Count:
    """One line of the table of parameters.

    Attributes:
        trainable: parameters that the optimiser updates.
        adapter_bytes: size of the saved adapter's safetensors file (of the whole model where
            all of it is trained).
        frozen_bytes: tensors that the method adds to the model and never trains (for OSoRA the
            singular vectors, second term of Eq. 6), as they are held in memory.
    """

    trainable: int
    adapter_bytes: int
    frozen_bytes: int


class NeedsWeights(UserError):
    """A PEFT method that cannot be made from shapes alone: what it does is known when it is run."""


def count(cfg: Config) -> Count:
    """Count for one cell's model and method.

    Raises:
        UserError: modules that match nothing or that the method cannot adapt, a rank that a layer
            cannot have.
        NeedsWeights: see there.
    """
    method = cfg.method
    if method.peft is None:
        parameters = _parameters(cfg.model) if method.full else {}
        size = _file_size(parameters, getattr(torch, cfg.model.dtype))
        return Count(sum(p.numel() for p in parameters.values()), size, 0)
    if is_layerwise(method):
        with suppress(UserError, Unlike):  # what is refused is refused below, of the whole model
            return _counted(cfg, _thinned(cfg.model))
    return _counted(cfg, Thinned(_blank(cfg)))


def _counted(cfg: Config, thin: Thinned) -> Count:
    base_ids = {id(t) for t in thin.model.parameters()} | {id(t) for t in thin.model.buffers()}
    adapted = adapt(cfg, thin.model)
    tensors = dict(adapted.named_parameters(remove_duplicate=False))
    tensors.update(adapted.named_buffers(remove_duplicate=False))
    saved = _saved(adapted, cfg.method.name)
    thin.check(tensors)
    thin.check(saved)
    names: dict[int, list[str]] = {}  # each tensor once, under all its names
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    trainable = frozen_bytes = 0
    for key, known_as in names.items():
        tensor = tensors[known_as[0]]
        numbers = tensor.numel() * thin.times(known_as)
        if tensor.requires_grad:
            trainable += numbers
        elif key not in base_ids:
            frozen_bytes += numbers * tensor.element_size()
    return Count(trainable, _file_size(thin.whole(saved)), frozen_bytes)


def _parameters(model: ModelConfig) -> dict[str, torch.Tensor]:
    thin = _thinned(model)
    return thin.whole(dict(thin.model.named_parameters()))


def _thinned(model: ModelConfig) -> Thinned:
    with _without_start():
        return thinned(model)


def _saved(adapted: Any, method: str) -> dict[str, torch.Tensor]:
    """The tensors that PEFT would save, as shapes.

    Raises:
        NeedsWeights: they depend on numbers, or PEFT makes some only where there are numbers.
    """
    if getattr(adapted.active_peft_config, "monteclora_config", None) is not None:
        raise NeedsWeights(
            f"method {method}: cannot be counted without weights: PEFT makes MonteCLoRA's samplers "
            "where there are numbers only; a cell's record has its counts"
        )
    try:
        with mock.patch.object(torch.Tensor, "cpu", lambda tensor, *_, **__: tensor):
            tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted)
            return tensors
    except (NotImplementedError, RuntimeError) as error:  # torch's, of tensors without numbers
        reason = shorten(str(error), 200)
        raise NeedsWeights(
            f"method {method}: cannot be counted without weights: {reason}"
        ) from error


def _blank(cfg: Config) -> nn.Module:
    with _without_start():
        return blank(cfg.model)


def check_layers(cfg: Config) -> None:
    """Refuse what the method's PEFT class refuses of the model's modules (UserError)."""
    model = ModelConfig(
        name=cfg.model.name,
        path=cfg.model.path,
        architecture=cfg.model.architecture,
        target_modules=cfg.model.target_modules,
    )
    _check(json.dumps({"model": plain(model), "method": plain(cfg.method)}))


@cache
def _check(sections: str) -> None:
    cfg = Config.of(json.loads(sections))
    with suppress(NeedsWeights):
        adapt(cfg, _blank(cfg))


def check_tied(cfg: Config) -> None:
    """Refuse starts that write into weights that are not the adapted layers' alone (UserError)."""
    how = getattr(adapter_config.instantiate(cfg.method), "init_lora_weights", None)
    residual = cfg.method.start or (isinstance(how, str) and how not in ADDED)
    if not residual:
        return
    with suppress(NeedsWeights):
        if tied := tied_layers(adapt(cfg, _blank(cfg))):
            raise UserError(
                f"method {cfg.method.name}: its start takes a part off the weight of {tied[0]}, "
                "which another module reads too (tied embeddings): the model would not start as "
                "the base; leave it out of model.target_modules"
            )


def adapt(cfg: Config, skeleton: nn.Module) -> Any:
    """The real PEFT model around `skeleton`, without numbers.

    Raises:
        UserError, NeedsWeights: as `count`.
    """
    check_rank(cfg, skeleton)
    method = cfg.method
    peft = adapter_config.instantiate(_without_weights(method))
    with torch.device("meta"), _without_start(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again where the adapter gets its weights
        try:
            return get_peft_model(skeleton, peft)
        except ValueError as error:  # how PEFT's methods refuse a model
            raise UserError(f"method {method.name}: {error}") from error
        except Exception as error:  # whatever an operation makes of tensors without numbers
            reason = shorten(str(error), 200)
            raise NeedsWeights(
                f"method {method.name}: cannot be made without weights: {reason}"
            ) from error


@contextmanager
def _without_start() -> Iterator[None]:
    """Draw no starting values: meta tensors hold none, and it is a fifth of the time."""
    initialisers = {k: f for k, f in vars(nn.init).items() if k.endswith("_") and k[0] != "_"}
    for name in initialisers:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in initialisers.items():
            setattr(nn.init, name, function)


def _without_weights(method: MethodConfig) -> MethodConfig:
    """The method with the start of its factors left out, where that is computed from the weights
    (`init_lora_weights: pissa` and its kin): the modules are the same, and meta has no weights.
    MiCA's says what is frozen, too."""
    peft = method.peft
    how = (peft or {}).get("init_lora_weights")
    if peft is not None and isinstance(how, str) and how != "mica":
        return replace(method, peft={**peft, "init_lora_weights": True})
    return method


def _file_size(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of a safetensors file as PEFT writes it: 8 for the header's length, the header padded
    to a multiple of 8, the data. Without tensors there is no file."""
    if not tensors:
        return 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = list(SAFETENSORS_TYPES)
    # the format's writer sorts by type, then by name
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (-order.index(dtype or item[1].dtype), item[0])
    ):
        kind = dtype or tensor.dtype
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + end


def expected(method: str, rank: int, shapes: Sequence[tuple[int, int]]) -> int | None:
    """Trainable parameters of a method of the paper by formula, or None for any other.

    Args:
        shapes: (d_out, d_in) of every adapted layer.
    """
    forms: dict[str, Callable[[int, int], int]] = {
        "lora": lambda d_out, d_in: rank * (d_out + d_in),
        "pissa": lambda d_out, d_in: rank * (d_out + d_in),
        "dora": lambda d_out, d_in: rank * (d_out + d_in) + d_out,
        "vera": lambda d_out, d_in: rank + d_out,
        "osora": lambda d_out, d_in: rank + d_out,  # section 3.5
        "osora_g": lambda d_out, d_in: rank + d_out,
        "osora_star": lambda d_out, d_in: d_out,
        "osora_star_star": lambda d_out, d_in: rank,
        "osora_k": lambda d_out, d_in: rank + d_in,
        "osora_dora": lambda d_out, d_in: rank + 2 * d_out,
    }
    return sum(forms[method](*shape) for shape in shapes) if method in forms else None
