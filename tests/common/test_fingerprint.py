"""A model's folder is what is loaded of it."""

import hashlib
import json
import shutil

import pytest

from osora_bench.common import paths
from osora_bench.common.fingerprint import fingerprint

TOY = paths.resolve("pkg://osora_bench.toy/model")
LOADED = [
    "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.bpe", "qwen.tiktoken",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "modeling_own.py",
    "bpe.codes", "optimizer_of_words.json",
]  # fmt: skip


@pytest.fixture
def model(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(TOY, place)
    return place


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", ".nfs000000001", "training_args.bin", "LICENSE", "LICENSE.txt", "x.lock",
        ".model.safetensors.lock", "trainer_state.json", "optimizer.pt", "rng_state_0.pth",
        "Thumbs.db", "NOTICE", "USE_POLICY.md", "config.json~", ".config.json.swp", "README",
        "model.safetensors.part", "events.out.tfevents.1",
    ],
)  # fmt: skip
def test_stray_files_change_no_fingerprint(name, model):
    before = fingerprint(model)
    (model / name).write_bytes(b"stray")
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", LOADED)
def test_what_is_loaded_changes_it(name, model):
    before = fingerprint(model)
    (model / name).write_bytes(b"another")
    assert fingerprint(model) != before


def test_a_folder_without_stray_files_has_the_fingerprint_that_it_had(tmp_path):
    """As it was taken before: of every file's checksum by name."""
    for name in LOADED:
        (tmp_path / name).write_text(name)
    parts = {name: hashlib.sha256(name.encode()).hexdigest() for name in sorted(LOADED)}
    told = json.dumps(parts, sort_keys=True).encode()
    assert fingerprint(tmp_path) == f"sha256:{hashlib.sha256(told).hexdigest()}"


def test_a_file_that_is_named_itself_counts_whatever_its_name(tmp_path):
    (tmp_path / "notes.log").write_text("a")
    told = hashlib.sha256(b"a").hexdigest()
    assert fingerprint(tmp_path / "notes.log") == f"sha256:{told}"
