"""The wheel, installed: OSoRA with nothing but its declared dependencies, and the harness in the
folder of a researcher who has a method, a module and an experiment of their own."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from osora_bench.common import paths

pytestmark = pytest.mark.long

OSORA = """
import peft, torch, transformers
from osora_bench.osora import OsoraConfig, save_lora

def base():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2))

ids = torch.arange(3, 12)[None]
def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits

model = peft.get_peft_model(base(), OsoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
start = logits(model)
assert torch.equal(start, logits(base()))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
model.train()
for _ in range(3):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
trained = logits(model)
assert not torch.allclose(trained, start)
model.save_pretrained("adapter")
save_lora(model, "lora")
loaded = peft.PeftModel.from_pretrained(base(), "adapter")
assert torch.equal(logits(loaded), trained)
as_lora = peft.PeftModel.from_pretrained(base(), "lora")
torch.testing.assert_close(logits(as_lora), trained, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(logits(loaded.merge_and_unload()), trained, rtol=1e-4, atol=1e-5)
base().save_pretrained("base")
print("OSORA WORKS")
"""
EXPERIMENT = """\
title: Mine beside LoRA
seed: [0]
set: {task: toy, eval: toy, ledger: ledger, runs: runs, trainer.max_steps: 2,
      eval.datasets.0.limit: 6, eval.datasets.1.limit: 6}
blocks:
  - {model: [toy], method: [mine]}
  - {model: [toy], method: [lora], rank: [4]}
tables:
  accuracy: {layout: methods, title: Accuracy, methods: [mine, lora]}
"""


def run(*command: str | Path, folder: Path, path: Path | None = None, **environment: str) -> str:
    """What a command prints; a failure shows all of it."""
    keep = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    env = {**keep, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, env=env, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", *arguments, folder=paths.ROOT, **os.environ)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, paths.ROOT)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone, unpacked by pip."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "-q", "--no-deps", "--target", folder, wheel)
    return folder


def test_it_has_every_file_that_git_has(wheel: Path) -> None:
    folders = ("osora_bench", "conf", "experiments", "results/reference")
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=paths.ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = {n if n.startswith("osora_bench/") else f"osora_bench/{n}" for n in listed}
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert inside >= names
    assert {n for n in inside - names if not n.endswith((".py", ".yaml"))} == set()


def declared(site: Path) -> set[str]:
    """The distributions that `pip install` of the wheel brings, with those that they need."""
    found: set[str] = set()
    (itself,) = importlib.metadata.distributions(path=[str(site)])
    waiting = [*(itself.requires or [])]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        if name not in found:
            found.add(name)
            waiting += importlib.metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def alone(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules with the wheel and what it declares, and nothing else that is here."""
    folder = tmp_path_factory.mktemp("alone")
    places = {
        Path(distribution.locate_file("")) / file.parts[0]
        for distribution in map(importlib.metadata.distribution, declared(site))
        for file in distribution.files or ()
    }
    for place in [*places, *site.iterdir()]:
        if place.name not in ("..", "__pycache__", "bin"):
            (folder / place.name).symlink_to(place)
    return folder


def isolated(alone: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python without site-packages, with the modules of `alone`."""
    code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); what = sys.argv.pop(1); "
    code += "sys.argv[0] = what; exec(what) if ';' in what or chr(10) in what else "
    code += "runpy.run_module(what, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(alone), *arguments],
        cwd=folder, env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_osora_needs_what_is_declared_and_no_more(alone: Path, tmp_path: Path) -> None:
    done = isolated(alone, OSORA, folder=tmp_path)
    assert "OSORA WORKS" in done.stdout, done.stderr
    arguments = ("--adapter", "adapter", "--model", "base", "--output", "merged")
    done = isolated(
        alone, "osora_bench.cli.main", "export", *arguments, "--format", "merged", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert isolated(alone, "import hydra; 0", folder=tmp_path).returncode == 1


def test_without_the_harness_its_verbs_say_how_to_get_it(alone: Path, tmp_path: Path) -> None:
    for arguments in (("plan", "experiment=demo"), ("run", "--help")):
        done = isolated(alone, "osora_bench.cli.main", *arguments, folder=tmp_path)
        assert done.returncode == 2
        assert re.search(r'needs \w+; install it with pip install "osora-bench\[bench\]"$',
                         done.stderr.strip())  # fmt: skip
        assert "Traceback" not in done.stderr


@pytest.mark.sweep
def test_a_researchers_own_folder(site: Path, tmp_path: Path) -> None:
    """A method, its module and an experiment that lie in the working folder; what is shipped."""
    page = (paths.ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    module, method = re.findall(r"```\w+\n(.*?)```", page, re.DOTALL)
    for name, text in {
        "my_method.py": module,
        "conf/method/mine.yaml": method,
        "conf/method/lora.yaml": (paths.CONF / "method" / "lora.yaml").read_text().replace(
            "label: LoRA", "label: My LoRA"),
        "experiments/mine.yaml": EXPERIMENT,
    }.items():  # fmt: skip
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    command = site / "bin" / "osora-bench"
    assert "17 missing" in run(command, "plan", "experiment=demo", folder=tmp_path, path=site)
    run(command, "run", "experiment=mine", folder=tmp_path, path=site)
    assert len(list((tmp_path / "ledger").glob("*.json"))) == 2
    shown = run(command, "tables", "experiment=mine", folder=tmp_path, path=site)
    assert "Mine" in shown
    assert "My LoRA" in shown


def test_a_primary_configuration_of_the_users_is_refused(site: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").touch()
    done = subprocess.run(
        [site / "bin" / "osora-bench", "plan", "experiment=demo"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "config.yaml is the harness's own" in done.stderr


@pytest.mark.slow
def test_a_fresh_environment_resolves_what_is_declared(wheel: Path, tmp_path: Path) -> None:
    """As `pip install osora-bench` would, from the machine's package index: no pin of the
    harness's comes with it."""
    run(sys.executable, "-m", "venv", tmp_path / "env", folder=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    given = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    # of torch the build that is here: others bring gigabytes of CUDA
    constraint = tmp_path / "torch.txt"
    constraint.write_text(f"torch=={importlib.metadata.version('torch')}\n")
    run(python, "-m", "pip", "install", "-q", "-c", constraint, wheel, folder=tmp_path, **given)
    assert "OSORA WORKS" in run(python, "-c", OSORA, folder=tmp_path)
    installed = run(python, "-m", "pip", "list", "--format=freeze", folder=tmp_path)
    assert not re.search(r"^(hydra-core|datasets|opencompass)==", installed, re.MULTILINE)
