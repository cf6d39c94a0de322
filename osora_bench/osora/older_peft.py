"""What OSoRA uses of PEFT and releases before 0.21 lack, down to 0.17.

They keep a closed list of methods in the code that saves, and have no hook in the code that loads;
before 0.18 a tuner also brings most of its own handling. `Tuner` and `TunerLayer` are PEFT's own
classes where those have it all. What cannot be had with an old release says so when asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import peft
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from peft.utils.other import AuxiliaryTrainingWrapper, _get_submodules
from torch import Tensor, nn

BEFORE_21 = not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load")
BEFORE_20 = find_spec("peft.utils.quantization_utils") is None
BEFORE_18 = not hasattr(BaseTuner, "merge_and_unload")


def needs(what: str, release: str) -> str:
    """That something is not to be had with the PEFT that is installed."""
    return f"{what} needs PEFT {release} or newer; this is {peft.__version__}"


def name_method(name: str) -> None:
    """Have releases before 0.21 save adapters of a method that is not on their list."""
    if BEFORE_21 and name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_map_[name] = member
        PeftType._member_names_.append(name)
        PeftType._value2member_map_[name] = member


def remove_adapter(model: nn.Module, name: str, prefix: str, kind: type[Any]) -> None:
    """Delete an adapter from the layers of `kind` in a model."""
    if not BEFORE_18:
        tuners_utils.delete_adapter(model, name, prefix, kind)
        return
    for module in model.modules():
        if isinstance(module, kind):
            module.delete_adapter(name)


class OlderLayer(BaseTunerLayer):
    """A layer that keeps its frozen tensors frozen; 0.21's does by itself."""

    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, the rest of them without gradients."""
        if BEFORE_18:
            super().set_adapter(adapter_names)
        else:
            super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._refreeze(everything=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off."""
        super().enable_adapters(enabled)
        self._refreeze()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Let adapters be trained, or not."""
        super().set_requires_grad(adapter_names, requires_grad=requires_grad)
        self._refreeze()

    def _refreeze(self, everything: bool = False) -> None:
        for name in self._all_available_adapter_names():
            frozen = self.frozen_peft_weight_names.get(name, ())
            for attr in self.adapter_layer_names if everything else frozen:
                if name in getattr(self, attr):
                    getattr(self, attr)[name].requires_grad_(False)


class OlderTuner(BaseTuner):
    """A tuner whose adapters are checked as their tensors are loaded."""

    active_adapters: list[str]
    check_load: Callable[[dict[str, Tensor]], None]
    """Check adapters' tensors, by their names in this module, before they are taken over."""

    def watch_loading(self) -> None:
        """Have `check_load` called before tensors are taken over."""
        if not getattr(self, "_watched", False):
            self._watched = True
            self.register_load_state_dict_pre_hook(_before_loading)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Not called before 0.21: `set_peft_model_state_dict` names the tensors itself."""
        raise NotImplementedError


def _before_loading(
    tuner: OlderTuner, state: dict[str, Tensor], prefix: str, *_: Any, **__: Any
) -> None:
    tuner.check_load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class OldestTuner(OlderTuner):
    """A tuner with what 0.18 has for all tuners."""

    def __getattr__(self, name: str) -> Any:
        """What the tuner lacks is the model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def _prepare_adapter_config(self, config: Any, model_config: dict[str, Any]) -> Any:
        if config.target_modules is None:
            known = self.target_module_mapping.get(model_config.get("model_type"))
            if known is None:
                raise ValueError("Please specify `target_modules` in `peft_config`")
            config.target_modules = set(known)
        return config

    @staticmethod
    def _check_target_module_exists(config: Any, key: str) -> Any:
        return tuners_utils.check_target_module_exists(config, key)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if self.prefix not in name:
                parameter.requires_grad = False

    def _switch(self, enabled: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(enabled)

    def enable_adapter_layers(self) -> None:
        """Switch the adapters on."""
        self._switch(True)

    def disable_adapter_layers(self) -> None:
        """Switch the adapters off."""
        self._switch(False)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Activate adapters; merged ones are unmerged first, which is said."""
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                if module.merged:
                    warnings.warn("unmerging, to activate another adapter", stacklevel=2)
                    module.unmerge()
                module.set_adapter(adapter_name)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; another one becomes active where it was."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        del self.peft_config[adapter_name]
        remove_adapter(self.model, adapter_name, self.prefix, self.tuner_layer_cls)
        left = [n for n in self.active_adapters if n != adapter_name] or list(self.peft_config)[:1]
        self.active_adapter = left
        self._delete_auxiliary_adapter(adapter_name, new_active_adapters=left)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._check_merge_allowed()
            self._unloading_checks(adapter_names)
        for key, module in list(self.model.named_modules()):
            if isinstance(module, self.tuner_layer_cls):
                if merge:
                    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                put = module.get_base_layer()
            elif isinstance(module, AuxiliaryTrainingWrapper):
                put = module.unload_and_optionally_merge_module(
                    merge=merge, safe_merge=safe_merge, adapter_names=adapter_names
                )
            else:
                continue
            parent, _, name = _get_submodules(self.model, key)
            setattr(parent, name, put)
        return self.model

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """The base model with adapters merged in."""
        return self._unload_and_optionally_merge(
            progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )

    def unload(self) -> Any:
        """The base model without the adapters."""
        return self._unload_and_optionally_merge(merge=False)


Tuner: Any = OldestTuner if BEFORE_18 else OlderTuner if BEFORE_21 else BaseTuner
TunerLayer: Any = OlderLayer if BEFORE_21 else BaseTunerLayer
