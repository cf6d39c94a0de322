"""What a release of PEFT lacks is named where it is asked for. `make test-releases` runs these and
the tests of OSoRA's own with older releases of PEFT and transformers."""

from pathlib import Path

import peft
import pytest
from peft.utils import PeftType
from torch import nn

from osora_bench.osora import save_merged
from osora_bench.osora.older_peft import BEFORE_18, BEFORE_20, BEFORE_21
from tests.osora.conftest import make_base
from tests.osora.test_peft_features import config

RELEASE = tuple(int(n) for n in peft.__version__.split(".")[:2])


def test_what_is_there_is_known_by_what_it_has() -> None:
    assert (RELEASE < (0, 18), RELEASE < (0, 20), RELEASE < (0, 21)) == (
        BEFORE_18, BEFORE_20, BEFORE_21,
    )  # fmt: skip
    assert ("OSORA" in list(PeftType)) == BEFORE_21


@pytest.mark.skipif(not BEFORE_21, reason="PEFT has it")
def test_biases_ask_for_a_newer_release() -> None:
    with pytest.raises(ValueError, match=rf"bias='all' needs PEFT 0.21 .* is {peft.__version__}"):
        peft.get_peft_model(make_base("opt"), config("opt", bias="all"))


@pytest.mark.skipif(not BEFORE_20, reason="PEFT has it")
def test_a_merged_folder_asks_for_a_newer_release(tmp_path: Path) -> None:
    model = peft.get_peft_model(make_base("llama"), config())
    with pytest.raises(ValueError, match="a merged folder needs PEFT 0.20 or newer"):
        save_merged(model, tmp_path)


@pytest.mark.skipif(not BEFORE_20, reason="PEFT has it")
def test_a_quantised_base_asks_for_a_newer_release() -> None:
    class Linear4bit(nn.Linear):
        pass

    Linear4bit.__module__ = "bitsandbytes.nn.modules"
    base = make_base("llama")
    base.model.layers[0].self_attn.q_proj = Linear4bit(32, 32)
    with pytest.raises(ValueError, match=r"q_proj is a quantised layer .* needs PEFT 0.20"):
        peft.get_peft_model(base, config())
