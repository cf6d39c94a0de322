"""OSoRA (arXiv 2505.14350) as a method of Hugging Face PEFT.

Importing this package registers the method; `peft.get_peft_model(model, OsoraConfig(...))` then
works like any other method of PEFT.
"""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .config import PEFT_TYPE, OsoraConfig
from .export import save_lora, save_merged, to_lora
from .layer import Linear, OsoraLayer
from .model import OsoraModel
from .older_peft import name_method
from .pissa import start_pissa
from .store import SvdStore, use_store

__all__ = [
    "Linear",
    "OsoraConfig",
    "OsoraLayer",
    "OsoraModel",
    "SvdStore",
    "save_lora",
    "save_merged",
    "start_pissa",
    "to_lora",
    "use_store",
]

name_method(PEFT_TYPE.value)
# peft.utils.register_peft_method accepts only names of the closed enumeration PeftType.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = OsoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = OsoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = OsoraModel.prefix
