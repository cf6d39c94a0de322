"""Configuration of OSoRA (arXiv 2505.14350) as a PEFT method."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open


class OsoraType(str, Enum):  # noqa: UP042 (PEFT reads the name off `str`, "OsoraType.OSORA")
    """The method's key in PEFT's mappings: `PeftType` is closed, and code asks a type's `value`."""

    OSORA = "OSORA"


PEFT_TYPE = OsoraType.OSORA
O_INITS = ("ones", "gaussian")
O_SIDES = ("output", "input")
FORMAT_VERSION = 2
"""Files that use nothing newer stay of format 1, which older versions read."""
OF_ITS_OWN = "OSoRA adapts linear layers, each with a weight of its own"
NO_OPTIONS = {
    "target_parameters": f"{OF_ITS_OWN}; name them in target_modules",
    "layer_replication": "OSoRA repeats no layers; repeat them in the base model first",
}
"""What PEFT's LoRA has, by name, and may be asked of OSoRA as well."""
BIASES = ("none", "all", "osora_only")
DECOMPOSITIONS = ("base", "original")
PROJECTION_DTYPES = (None, "base")


@dataclass(frozen=True)
class Saved:
    """What is known of the place that a configuration was read from, before a model is changed.

    PEFT reads the weights beside a configuration only after it has changed the model for them.
    """

    folder: Path  # as it was given: it may be the name of a repository
    shapes: dict[str, tuple[int, ...]] | None  # of the tensors, None where there are none here
    inference_mode: bool  # in the file: True where a trained adapter was saved

    @property
    def without_weights(self) -> bool:
        """Whether it is a local folder with a configuration and nothing else of an adapter."""
        pickled = self.folder / WEIGHTS_NAME
        return self.folder.is_dir() and self.shapes is None and not pickled.is_file()


@dataclass
class OsoraConfig(PeftConfig):
    """Configuration of an `OsoraModel`.

    An adapted layer computes ``W0' x + diag(O) U_r diag(S) V_r^T x`` (Eq. 4), where U_r, S_r and
    V_r are the top-r singular triplets of the frozen weight W0 and ``W0'`` is the rest (Eq. 5). The
    vectors S and O are trained. The paper's variants are combinations of the options below:
    OSoRA* ``train_s=False`` and OSoRA** ``train_o=False`` (Fig. 3), OSoRA_G ``o_init="gaussian"``
    (Table 4), OSoRA_k ``o_side="input"`` (Table 5), OSoRA+DoRA ``use_dora=True`` (Table 6).

    Args:
        r: Rank, 1 <= r <= min(d_in, d_out) of every adapted layer.
        target_modules: Names (suffixes), or one regular expression, of the linear layers to adapt;
            "all-linear" for all but the output layer.
        exclude_modules: Names, or one regular expression, of layers to leave out.
        rank_pattern: Ranks that differ from `r`, by layer name or regular expression.
        clip_rank: Lower the rank of a layer to min(d_in, d_out) where it is above; otherwise such
            a layer is an error.
        train_s: Whether the singular values S are trained.
        train_o: Whether the scaling vector O is trained.
        o_init: How O starts: "ones", or "gaussian" for N(0, o_init_std^2).
        o_init_std: Standard deviation for "gaussian"; None is 1/r (the paper gives none).
        o_side: Where O acts: "output" (length d_out, Eq. 4) or "input" (length d_in, Eq. 11).
        use_dora: Learn a magnitude for each output row as well (DoRA).
        dora_detach_norm: Treat the weight norm of DoRA as a constant in the backward pass.
        save_projection: Store U_r, V_r and the initial S in the checkpoint, instead of recomputing
            them from the base weight on loading.
        fan_in_fan_out: True where the layer stores its weight as (d_in, d_out), as transformers'
            Conv1D does; set by itself for Conv1D and Linear.
        bias: Which biases are trained: "none", "all" or "osora_only".
        modules_to_save: Other modules to train and to save whole.
        layers_to_transform: Indices of the layers to adapt; all if None.
        layers_pattern: Name of the model's list of layers, for `layers_to_transform`.
        init_weights: With False, S and O start moved at random, so that the adapter changes the
            output from the start: for tests. U, V and S_0 are those of the weight all the same.
        projection_dtype: "base": U_r and V_r are kept in the base weight's precision, half of the
            frozen bytes on a 16-bit base; None: in float32 (float64 on a float64 base).
        decomposition: Of which weights, on a quantised base: "base", those that it has; "original",
            those that it was quantised from, in the folder that it was read from.
        base_quantization: Not an option: how the base was quantised, by bitsandbytes' names,
            written when the adapter is made.
        start_saved: Not an option: whether S_0 (and DoRA's norms of the rows) are in the file
            though save_projection is off, as they are once an adapter is or was in 16 bits.
        format_version: Raised when an option is added; a newer version's file is refused.

    Raises:
        ValueError: An unknown value, or a combination that has no meaning.
    """

    r: int = field(default=256, metadata={"help": "rank"})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "names or regular expression of the adapted linear layers"}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "names or regular expression of layers to leave out"}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "ranks that differ from r, by layer name"}
    )
    clip_rank: bool = field(default=False, metadata={"help": "lower a rank that is too large"})
    train_s: bool = field(default=True, metadata={"help": "train the singular values"})
    train_o: bool = field(default=True, metadata={"help": "train the scaling vector"})
    o_init: str = field(default="ones", metadata={"help": "'ones' or 'gaussian'"})
    o_init_std: float | None = field(default=None, metadata={"help": "for 'gaussian'; None: 1/r"})
    o_side: str = field(default="output", metadata={"help": "'output' or 'input'"})
    use_dora: bool = field(default=False, metadata={"help": "train a magnitude a row (DoRA)"})
    dora_detach_norm: bool = field(default=True, metadata={"help": "norm of DoRA as a constant"})
    save_projection: bool = field(default=False, metadata={"help": "store U and V as well"})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "weight stored as (in, out)"})
    bias: str = field(default="none", metadata={"help": "'none', 'all' or 'osora_only'"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "other modules to train and to save"}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "indices of the layers to adapt"}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "name of the list of layers"}
    )
    init_weights: bool = field(default=True, metadata={"help": "False: start at random, to test"})
    projection_dtype: str | None = field(
        default=None, metadata={"help": "'base': U and V in the base's precision"}
    )
    decomposition: str = field(
        default="base", metadata={"help": "'original': of the weights before quantisation"}
    )
    base_quantization: str | None = field(
        default=None, metadata={"help": "no option: how the base was quantised"}
    )
    start_saved: bool = field(default=False, metadata={"help": "no option: S_0 is in the file"})
    format_version: int = field(default=1, metadata={"help": "of this configuration"})
    target_parameters: InitVar[Any] = None
    layer_replication: InitVar[Any] = None

    def __post_init__(self, target_parameters: Any, layer_replication: Any) -> None:
        super().__post_init__()
        asked = {"target_parameters": target_parameters, "layer_replication": layer_replication}
        for name, why in NO_OPTIONS.items():
            if asked[name]:
                raise ValueError(f"{name} is no option of OsoraConfig: {why}")
        self.peft_type = PEFT_TYPE
        # not an option: where this configuration was read from
        self.saved: Saved | None = None
        # nor this: whether it is an adapter's
        self.serves = False
        _need_whole("format_version", self.format_version)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"this OsoraConfig is of format {self.format_version}, written by a newer version; "
                f"this version reads up to {FORMAT_VERSION}"
            )
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        self._check_values()
        self._check_combinations()
        newer = (self.projection_dtype, self.base_quantization, self.decomposition)
        if self.start_saved or newer != (None, None, "base"):
            self.format_version = FORMAT_VERSION

    def _check_values(self) -> None:
        if not isinstance(self.rank_pattern, dict):
            raise ValueError(f"rank_pattern must map names to ranks, not {self.rank_pattern!r}")
        for name, rank in {"r": self.r, **_named(self.rank_pattern)}.items():
            _need_whole(name, rank)
        for name, valid in {
            "o_init": O_INITS, "o_side": O_SIDES, "bias": BIASES,
            "projection_dtype": PROJECTION_DTYPES, "decomposition": DECOMPOSITIONS,
        }.items():  # fmt: skip
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, valid))}, "
                    f"not {getattr(self, name)!r}"
                )
        std = self.o_init_std
        numeric = isinstance(std, int | float) and not isinstance(std, bool)
        if std is not None and not (numeric and 0 < std < float("inf")):
            raise ValueError(f"o_init_std must be a positive number or None, not {std!r}")
        for name in (
            "clip_rank", "train_s", "train_o", "use_dora", "dora_detach_norm", "save_projection",
            "fan_in_fan_out", "init_weights", "start_saved",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")

    def _check_combinations(self) -> None:
        if not (self.train_s or self.train_o):
            raise ValueError("train_s and train_o are both false: nothing of OSoRA is trained")
        if self.o_init == "ones" and self.o_init_std is not None:
            raise ValueError("o_init_std has no effect with o_init='ones'; use o_init='gaussian'")
        if self.o_side == "input" and self.o_init == "ones" and not self.train_o:
            raise ValueError("o_side='input' has no effect while O stays at ones (train_o=False)")
        if not self.dora_detach_norm and not self.use_dora:
            raise ValueError("dora_detach_norm=False has no effect without use_dora=True")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform needs target_modules as a list of names, not as a string"
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> OsoraConfig:
        """Read the configuration of a saved adapter.

        Raises:
            ValueError: The adapter's weights beside it are damaged.
        """
        config: OsoraConfig = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        config.saved = Saved(folder, _shapes(folder), config.inference_mode)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, sets sorted, so that equal ones give equal files."""
        values = cast(dict[str, Any], super().to_dict())
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}


def _shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Of the tensors in an adapter's folder; None if it holds none or cannot be looked into."""
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}") from error


def _need_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _named(rank_pattern: dict[str, int]) -> dict[str, int]:
    return {f"rank_pattern[{key!r}]": rank for key, rank in rank_pattern.items()}
