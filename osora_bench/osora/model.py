"""OSoRA on a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from peft.tuners.tuners_utils import _ExcludedModule, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper, _get_submodules
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import check_folder, check_tensors, difference, each_once, shortened
from .config import OsoraConfig
from .layer import Linear, OsoraLayer
from .older_peft import BEFORE_21, Tuner, remove_adapter
from .originals import missing_originals, original_of
from .quantised import backend_of, weight_of
from .targets import check_quantisation, rank_of, shared_weights, target_problems

PROGRESS_DELAY = 2.0  # seconds before a progress bar appears
Flags = dict[nn.Parameter, bool]


class OsoraModel(Tuner):
    """A model with OSoRA on its target layers (arXiv 2505.14350).

    Made by `peft.get_peft_model(model, OsoraConfig(...))`. The targets are checked before anything
    is changed, and a failed injection or load leaves the model as it was.
    """

    prefix = "osora_"
    tuner_layer_cls = OsoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _progress: Any = None
    # adapters made for a checkpoint that is not loaded yet, with the model's earlier flags
    _unfinished_loads: Mapping[str, Flags] = MappingProxyType({})

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add OSoRA layers to `model`, or none of them if something is wrong.

        What is found of the model is written into the adapter's configuration, so one that serves
        another adapter already is copied. (The first has it itself: PEFT goes on to write into what
        it was given.)
        """
        if self.peft_config[adapter_name].serves:
            self.peft_config[adapter_name] = copy(self.peft_config[adapter_name])
        flags = {p: p.requires_grad for p in model.parameters()}
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            self._withdraw(adapter_name, flags)
            raise
        finally:
            if self._progress is not None:
                self._progress.close()
            self._progress = None
        self.peft_config[adapter_name].serves = True
        if self.peft_config[adapter_name].saved is not None:
            self._unfinished_loads = {**self._unfinished_loads, adapter_name: flags}
        if BEFORE_21:
            self.watch_loading()

    def check_load(self, given: dict[str, Tensor]) -> None:
        """Check what is about to be loaded, by its names in this module, where PEFT has no hook
        for that: adapters that wait for it, and those whose fingerprints are in it.

        Raises:
            ValueError: It does not fit; an adapter that was made for it is taken out again.
        """
        brought = {key.rpartition(".")[2] for key in given if ".osora_fingerprint." in key}
        waiting = set(self._unfinished_loads)
        for name in [n for n in self.peft_config if n in brought | waiting]:
            loads = dict(self._unfinished_loads)
            flags = loads.pop(name, None)
            self._unfinished_loads = loads
            try:
                own = each_once(self, given, name)
                _check_checkpoint(self, self.peft_config[name], name, own, {})
            except Exception:
                if flags is not None:
                    self._withdraw(name, flags)
                raise

    def _prepare_model(self, peft_config: OsoraConfig, model: nn.Module) -> None:
        """Check every target before the first layer is replaced."""
        _maybe_include_all_linear_layers(peft_config, model)
        targets = dict(self._targets(peft_config, model))
        _refuse(target_problems(peft_config, model, targets))
        check_folder(peft_config, model)
        check_quantisation(peft_config, targets)
        if _asks_originals(peft_config):
            _refuse(missing_originals(model, targets))
        self._progress = tqdm(
            total=len(targets), desc="OSoRA: SVD", unit="layer", delay=PROGRESS_DELAY, leave=False
        )

    def _targets(self, config: OsoraConfig, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        inside: tuple[str, ...] = ()
        for key, module in model.named_modules():
            if not key or key.startswith(inside or ("\0",)):
                continue
            if isinstance(module, OsoraLayer):
                inside += (key + ".",)
            found = self._check_target_module_exists(config, key)
            if found and not isinstance(found, _ExcludedModule):
                base = module.get_base_layer() if isinstance(module, OsoraLayer) else module
                yield key, base

    def _create_and_replace(
        self,
        peft_config: OsoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        *,
        current_key: str,
        **_: Any,
    ) -> None:
        if peft_config.fan_in_fan_out and isinstance(target, nn.Linear):
            warnings.warn(
                f"fan_in_fan_out=True has no effect on {current_key}, a torch.nn.Linear",
                stacklevel=2,
            )
        base = target.get_base_layer() if isinstance(target, OsoraLayer) else target
        r = rank_of(peft_config, current_key, base)
        original = None
        if _asks_originals(peft_config):
            original = original_of(self.model, current_key, weight_of(base, backend_of(base)))
        if isinstance(target, OsoraLayer):
            target.update_layer(adapter_name, r, peft_config, original=original)
        else:
            layer = Linear(
                target,
                adapter_name,
                r,
                peft_config,
                model_dtype=_dtype_of(self.model),
                original=original,
            )
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        self._progress.update()

    def _replace_module(self, parent: Any, name: str, new: nn.Module, old: nn.Module) -> None:
        """PEFT would also move the new layer, whose tensors were made where they belong: on the
        meta device those of one that is to be loaded stay."""
        setattr(parent, name, new)

    def _withdraw(self, adapter_name: str, flags: Flags) -> None:
        """Take `adapter_name` out again, and put back what trained before."""
        self.peft_config.pop(adapter_name, None)
        if not self.peft_config:
            self._unload_and_optionally_merge(merge=False)
        else:
            remove_adapter(self.model, adapter_name, self.prefix, OsoraLayer)
            for key, module in list(self.model.named_modules()):
                if isinstance(module, OsoraLayer) and not module.osora_S:
                    parent, _, name = _get_submodules(self.model, key)
                    setattr(parent, name, module.get_base_layer())
        for parameter, flag in flags.items():
            parameter.requires_grad = flag

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: OsoraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Name a checkpoint's tensors for the model, after checking that they fit it.

        Raises:
            ValueError: The tensors or the base weights do not fit. An adapter that was made for
                this checkpoint is taken out again.
        """
        tuner = getattr(model, "base_model", None)
        flags = None
        if isinstance(tuner, OsoraModel):
            loads = dict(tuner._unfinished_loads)
            flags = loads.pop(adapter_name, None)
            tuner._unfinished_loads = loads
        try:
            mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
                model, config, adapter_name, state_dict
            )
            biases = cls._get_learnable_bias_state_dict(model, model.state_dict(), config)
            mapped = each_once(model, mapped, adapter_name)
            _check_checkpoint(model, config, adapter_name, mapped, biases)
        except Exception:
            if flags is not None and isinstance(tuner, OsoraModel):
                tuner._withdraw(adapter_name, flags)
            raise
        return mapped

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """With False, the adapter takes the base weight's dtype, as other methods' do; otherwise it
        stays float32, and U and V what `projection_dtype` says."""
        for module in self.model.modules():
            if isinstance(module, OsoraLayer) and adapter_name in module.osora_S:
                module.cast_adapter(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            _tell_low(self._low_dtypes())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch's, for `to`, `half` and the like; S and O in fewer digits are told of."""
        before = self._low_dtypes()
        super()._apply(fn, recurse)
        _tell_low(self._low_dtypes() - before)
        return self

    def _low_dtypes(self) -> set[torch.dtype]:
        layers = [module for module in self.modules() if isinstance(module, OsoraLayer)]
        return {dtype for layer in layers for dtype in layer.low_dtypes()}

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """As PEFT's, but a name that no adapter has is an error (ValueError), and a weight that
        other modules share."""
        self._need_names(adapter_names or ())
        self._need_own_weights(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Any:
        self._need_names(adapter_names or ())
        if kwargs.get("merge", args[0] if args else True):
            self._need_own_weights(adapter_names)
        return super()._unload_and_optionally_merge(*args, adapter_names=adapter_names, **kwargs)

    def _need_own_weights(self, adapter_names: list[str] | None) -> None:
        """Of the layers that adapters (None: the active ones) are on."""
        names = set(adapter_names or self.active_adapters)
        layers = {
            key: module
            for key, module in self.model.named_modules()
            if isinstance(module, OsoraLayer) and not names.isdisjoint(module.osora_S.keys())
        }
        shared = list(shared_weights(self.model, layers))
        if shared:
            raise ValueError(
                f"merging would change other modules too: {shortened(shared)}; give the layer a "
                "weight of its own first, or leave the adapter beside it"
            )

    def _need_names(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.peft_config))
        if unknown:
            raise ValueError(
                f"unknown adapter_names: {', '.join(unknown)}; there are "
                f"{', '.join(self.peft_config)}"
            )

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names`, one a row of the batch, to the layers for one forward pass."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names can be used for inference only; call model.eval()")
        self._need_names(set(names) - {"__base__"})
        beams = kwargs.get("num_beams") or 1
        encoder = _encoder(self.model)
        in_encoder = set(encoder.modules()) if encoder is not None else set()
        handles = []
        for module in self.modules():
            if isinstance(module, OsoraLayer | AuxiliaryTrainingWrapper):
                # beam search repeats each input, but not before the encoder
                repeat = 1 if module in in_encoder else beams
                repeated = [name for name in names for _ in range(repeat)]
                hook = partial(_with_names, names=repeated)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ValueError("OSoRA cannot adapt this model: " + shortened(found))


def _asks_originals(config: OsoraConfig) -> bool:
    """Whether the weights before quantisation are needed: not where a file brings U_r and V_r."""
    brought = config.saved is not None and config.save_projection
    return config.decomposition == "original" and not brought


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Of the parameters that are not quantised and no adapter's."""
    kinds = (
        p.dtype for n, p in model.named_parameters() if p.is_floating_point() and ".osora_" not in n
    )
    return next(kinds, torch.float32)


def _tell_low(dtypes: set[torch.dtype]) -> None:
    for dtype in dtypes:
        warnings.warn(
            f"S and O are kept in {str(dtype).removeprefix('torch.')}: training loses the changes "
            f"that are below a step of it, {torch.finfo(dtype).eps:.2g} of a singular value. "
            "autocast_adapter_dtype=True (the default) keeps both in float32 on a 16-bit base; "
            "model.to(dtype) is for the base model, before it is adapted",
            stacklevel=3,
        )


def _with_names(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _encoder(model: Any) -> nn.Module | None:
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    encoder: nn.Module = model.get_encoder()
    return encoder


def _check_checkpoint(
    model: nn.Module,
    config: OsoraConfig,
    adapter_name: str,
    given: dict[str, Tensor],
    biases: dict[str, Tensor],
) -> None:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, OsoraLayer)}
    for name, layer in layers.items():
        layer.load_start(given, f"{name}.")
    here = model.state_dict()
    expected = {
        key: here[key]
        for name, layer in layers.items()
        for key in (f"{name}.{attr}.{adapter_name}" for attr in layer.tensor_names)
        if key in here
    }
    check_tensors({**expected, **biases}, given, set(here))
    if any(t.is_meta for k, t in expected.items() if ".osora_fingerprint." in k):
        raise ValueError("a checkpoint cannot be checked against a base model on the meta device")
    found = []
    for name in layers:
        key = f"{name}.osora_fingerprint.{adapter_name}"
        if key in expected:
            text = difference(given[key], expected[key], config.save_projection)
            found += [] if text is None else [f"{name}: {text}"]
    if found:
        raise ValueError(
            f"adapter {adapter_name!r} was trained on other base weights: " + shortened(found, 3)
        )
