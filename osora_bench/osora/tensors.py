"""The tensors of a layer's adapters: their precision, what is saved of them, what was loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from .checkpoint import difference
from .config import FORMAT_VERSION, OsoraConfig
from .older_peft import TunerLayer
from .quantised import number_dtype

FULL_BITS = 32


class AdapterTensors(TunerLayer):
    """The tensors of the adapters on one layer, by name; which of them a checkpoint holds, and
    whether those that came from one belong to this layer."""

    get_base_layer: Callable[[], Any]
    quantization_backend: Any
    _model_dtype: torch.dtype
    adapter_layer_names = ("osora_S", "osora_O", "osora_magnitude")
    other_param_names = (
        "osora_U", "osora_V", "osora_S0", "osora_O0", "osora_norm0", "osora_fingerprint",
        "osora_config",
    )  # fmt: skip

    # everything of an adapter that may be in a checkpoint
    tensor_names = adapter_layer_names + other_param_names[:-1]
    # what S and the magnitude are changes of
    start_names = ("osora_S0", "osora_norm0")

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the base weight as numbers."""
        return number_dtype(self.get_base_layer(), self.quantization_backend, self._model_dtype)

    def _make_tensors(self) -> None:
        self.osora_S = nn.ParameterDict({})  # (r,)
        self.osora_O = nn.ParameterDict({})  # (d_out,) or, with O on the input, (d_in,)
        self.osora_magnitude = nn.ParameterDict({})  # (d_out,), only with DoRA
        self.osora_U = BufferDict({})  # (d_out, r)
        self.osora_V = BufferDict({})  # (r, d_in)
        self.osora_S0 = BufferDict({})  # (r,)
        self.osora_O0 = BufferDict({}, persistent=True)  # like O, only where its start is random
        self.osora_norm0 = BufferDict({})  # (d_out,), row norms of W0, only with DoRA
        self.osora_fingerprint = BufferDict({}, persistent=True)
        self.osora_config: dict[str, OsoraConfig] = {}
        # as they were found here, whatever is loaded: S_0 and norms, and the fingerprint
        self._starts: dict[str, dict[str, Tensor]] = {}
        self._marks: dict[str, Tensor] = {}
        self._verified: dict[str, Tensor] = {}  # the stored one that was held against it

    def _note_found(self, adapter_name: str) -> None:
        """Remember the start and the fingerprint of an adapter that was just made."""
        self._marks[adapter_name] = self.osora_fingerprint[adapter_name].clone()
        self._verified.pop(adapter_name, None)
        self._starts[adapter_name] = {
            attr: getattr(self, attr)[adapter_name].clone()
            for attr in self.start_names
            if adapter_name in getattr(self, attr)
        }
        if self.osora_config[adapter_name].start_saved:
            self._save_start(adapter_name)

    def verify(self, adapter_name: str) -> None:
        """Refuse an adapter whose stored fingerprint is not that of the base weight.

        Loading with PEFT 0.21 does so before anything is changed. Not all ways into a layer lead by
        there (`load_adapter` of a transformers model, older releases), so it is asked for again
        when an adapter is first used after its tensors came.

        Raises:
            ValueError: It was trained on other base weights.
        """
        stored, found = self.osora_fingerprint[adapter_name], self._marks[adapter_name]
        if stored is self._verified.get(adapter_name) or stored.is_meta or found.is_meta:
            return
        with_projection = self.osora_config[adapter_name].save_projection
        told = difference(stored, found, with_projection)
        if told is not None:
            raise ValueError(
                f"adapter {adapter_name!r} was trained on other base weights: {told}. Its layers "
                "are in this model already: load the base model anew"
            )
        self._verified[adapter_name] = stored

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT would also cast to the base's dtype, and so round U, V and S of a bfloat16 base.
        device = self.get_base_layer().weight.device if device is None else device
        if device.type == "meta":
            return
        for tensors in (getattr(self, name) for name in self.tensor_names):
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                _replace(tensors, adapter_name, tensors[adapter_name].to(device))

    def cast_adapter(self, adapter_name: str, autocast: bool) -> None:
        """Give an adapter's tensors the base weight's dtype; with `autocast` at least float32, but
        for U and V with ``projection_dtype="base"``. Fingerprints stay float32."""
        low = self.base_dtype
        full = torch.promote_types(low, torch.float32) if autocast else low
        frozen = low if self.osora_config[adapter_name].projection_dtype == "base" else full
        for attr in self.tensor_names:
            tensors = getattr(self, attr)
            dtype = frozen if attr in ("osora_U", "osora_V") else full
            if adapter_name not in tensors or attr == "osora_fingerprint":
                continue
            old = tensors[adapter_name]
            if old.dtype == dtype:
                continue
            value = old.detach().to(dtype)
            if isinstance(old, nn.Parameter):
                value = nn.Parameter(value, requires_grad=old.requires_grad)
            _replace(tensors, adapter_name, value)
        self._save_start_of_low()

    def low_dtypes(self) -> set[torch.dtype]:
        """Of the adapters' S: those with fewer digits than float32."""
        return {s.dtype for s in self.osora_S.values() if torch.finfo(s.dtype).bits < FULL_BITS}

    def _save_start_of_low(self) -> None:
        """S in 16 bits is rounded as its own S_0 is, and means nothing beside one that is not."""
        for name, s in self.osora_S.items():
            if torch.finfo(s.dtype).bits < FULL_BITS:
                self._save_start(name)

    def _save_start(self, name: str) -> None:
        """Have the start of an adapter saved with it, from now on."""
        config = self.osora_config[name]
        config.start_saved, config.format_version = True, FORMAT_VERSION
        for attr in self._starts[name]:
            buffers = getattr(self, attr)
            buffers.register_buffer(name, buffers[name], persistent=True)

    def load_start(self, tensors: dict[str, Tensor], prefix: str) -> None:
        """Prepare for a checkpoint's `tensors`: take over a start that it brings; where it brings
        none, S is a change of the start that was found here."""
        for name in self.osora_S:
            found = self._starts[name]
            keys = {attr: f"{prefix}{attr}.{name}" for attr in found}
            if f"{prefix}osora_S.{name}" not in tensors or self.osora_config[name].save_projection:
                continue
            if keys["osora_S0"] in tensors:
                self._save_start(name)
            elif self.osora_config[name].start_saved:
                tensors.update({keys[attr]: start for attr, start in found.items()})

    def after_cast(self, marks: dict[str, Tensor]) -> None:
        """Put back the fingerprints `marks` where torch has cast them along."""
        for name, mark in marks.items():
            moved = self.osora_fingerprint[name]
            if moved.dtype != mark.dtype:
                _replace(self.osora_fingerprint, name, mark.to(moved.device))
        self._save_start_of_low()


def _replace(tensors: Any, name: str, value: Tensor) -> None:
    """Put a tensor in another's place. A `BufferDict` would forget whether it is to be saved."""
    if isinstance(tensors, BufferDict):
        saved = name not in tensors._non_persistent_buffers_set
        tensors.register_buffer(name, value, persistent=saved)
    else:
        tensors[name] = value
