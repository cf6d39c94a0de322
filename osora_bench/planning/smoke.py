"""SCALE=smoke: an experiment's rows and columns on tiny random models and made-up data.

Every cell keeps its model family, method, rank, task, suite and learning rate. The model shrinks
to one layer as wide as the experiment's largest rank, the data to a few made-up rows in the real
files' formats, training to one step, each set to one question. The results mean nothing; that they
come out shows that every row and column of the experiment runs.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HEAD = 64
"""Width of an attention head; a model is as many heads wide as the experiment's ranks need."""
ROWS = 12
"""Rows of each made-up file; HellaSwag's prompt takes ten of them."""
RUNS = "runs/smoke"
SETTINGS = (
    "ledger=${runs}/ledger",
    "model.revision=null",
    "model.architecture=null",
    "model.dtype=float32",
    "model.needs_gpu=false",
    "trainer.max_steps=1",
    "trainer.batch_size=${trainer.processes}",
    "trainer.micro_batch_size=1",
    "trainer.precision=float32",
    "trainer.gradient_checkpointing=false",
    "task.max_length=64",
    "task.max_rows=2",
)


def _smaller(cfg: Any, given: Sequence[str], rank: int) -> list[str]:
    """What turns a composed cell into its smoke version, unless it is `given`; writes the data and
    a model that `rank` fits if they are not there.

    A model without an architecture in its file is run as it is: the embedded one is tiny already.
    """
    named = [g.removeprefix("runs=") for g in given if g.startswith("runs=")]
    runs = Path(named[-1] if named else RUNS).absolute()
    use_made_up_data(runs)
    chosen = [f"runs={RUNS}", *SETTINGS]
    if cfg.task.validation_rows is not None:
        chosen.append("task.validation_rows=2")
    if cfg.eval.limit is not None:  # each set has its own
        chosen.append("eval.limit=null")
    if cfg.model.architecture is not None:
        chosen.append(f"model.path={_model(cfg.model, runs, rank)}")
    for index in range(len(cfg.eval.datasets)):
        chosen += [f"eval.datasets.{index}.limit=1", f"eval.datasets.{index}.max_out_len=1"]
    for index, source in enumerate(cfg.task.sources):
        if not source.path.startswith("pkg://"):
            chosen.append(f"task.sources.{index}.rows={ROWS}")
            chosen += [f"task.sources.{index}.first={ROWS // 2}"] if source.first else []
            chosen += [f"task.sources.{index}.exclude.rows={ROWS // 2}"] if source.exclude else []
    return chosen


def use_made_up_data(runs: Path) -> None:
    """Write the made-up files below `runs` and make this process and its children read them."""
    root = runs.absolute() / "data"
    for name, text in _files().items():
        place = root / name
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    os.environ["OSORA_DATA"] = str(root)


def _model(model: Any, runs: Path, rank: int) -> Path:
    """The folder of the model's tiny random relative."""
    width = HEAD * -(-rank // HEAD)
    shrunk = {
        **model.architecture,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "intermediate_size": HEAD,
    }
    told = hashlib.sha256(json.dumps(shrunk, sort_keys=True).encode()).hexdigest()[:8]
    place = runs / "models" / f"{model.name}-{told}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix="."))
        try:
            _build(shrunk, temporary)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def _build(architecture: dict[str, Any], folder: Path) -> None:
    """Write a random model of the architecture with a tokenizer of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = _tokenizer()
    config = AutoConfig.for_model(
        **{**architecture, "vocab_size": len(tokenizer)},
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """Whole words, most of them unknown: long real prompts stay short."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
    words = [*special, *"ABCDE", *"0123456789", ".", ":", "Answer", "Question", "The", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    fast.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    return fast


def _files() -> dict[str, str]:
    """Every file that the paper's tasks and suites read, by its place in the data folder."""
    choices = [{"label": "ABCDE"[i], "text": f"{i}"} for i in range(5)]
    asked = {"stem": "Which is 1?", "choices": choices[:4]}
    csqa = {"answerKey": "B", "question": {**asked, "choices": choices}}
    arc = _lines({"id": "made up", "question": asked, "answerKey": "B"})
    gsm8k = _lines({"question": "What is 1 and 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"})
    piqa = _lines({"id": "made up", "goal": "Count.", "sol1": "1, 2", "sol2": "2, 1"})
    siqa = _lines({"context": "A counts.", "question": "What?", **_named("answer", "ABC")})
    hellaswag = _lines({"query": "Count: 1, 2,", "choices": [*"3456"], "gold": 0})
    solved = {"problem": "What is 1 and 1?", "solution": r"It is $\boxed{2}$."}
    meta = {"type": "made up", "query": "What is 1 and 1?", "response": "The answer is: 2"}
    gpqa = {name: _gpqa(count) for name, count in GPQA_ROWS.items()}
    sentence = {"qID": "made up", "sentence": "1 is less than 2 so _ is less.", "answer": "1"}
    return {
        "metamathqa/MetaMathQA-395K.json": json.dumps([meta] * ROWS),
        **{f"commonsenseqa/{split}_rand_split.jsonl": _lines(csqa) for split in ("train", "dev")},
        "gsm8k/train.jsonl": gsm8k,
        "gsm8k/test.jsonl": gsm8k,
        **{
            f"math/{name}.json": json.dumps({str(i): solved for i in range(ROWS)})
            for name in ("math", "test_prm800k_500")
        },
        "SuperGLUE/BoolQ/val.jsonl": _lines(
            {"question": "is 1 less", "passage": "1 is less than 2.", "label": "true"}
        ),
        **{f"piqa/{split}.jsonl": piqa for split in ("train", "dev")},
        **{f"piqa/{split}-labels.lst": "0\n" * ROWS for split in ("train", "dev")},
        **{f"siqa/{split}.jsonl": siqa for split in ("train", "dev")},
        **{f"siqa/{split}-labels.lst": "1\n" * ROWS for split in ("train", "dev")},
        "hellaswag/hellaswag.jsonl": hellaswag,
        "hellaswag/hellaswag_train_sampled25.jsonl": hellaswag,
        "winogrande/dev.jsonl": _lines({**sentence, **_named("option", "12")}),
        "ARC/ARC-e/ARC-Easy-Dev.jsonl": arc,
        "ARC/ARC-c/ARC-Challenge-Dev.jsonl": arc,
        "openbookqa/Main/test.jsonl": arc,
        **{f"gpqa/gpqa_{name}.csv": text for name, text in gpqa.items()},
    }


GPQA_ROWS = {"main": ROWS, "extended": ROWS, "diamond": ROWS // 2}


def _lines(row: dict[str, Any]) -> str:
    return (json.dumps(row) + "\n") * ROWS


def _named(name: str, ends: str) -> dict[str, str]:
    return {f"{name}{end}": end for end in ends}


def _gpqa(rows: int) -> str:
    """Questions in the columns of GPQA's files, where OpenCompass reads them by position."""
    options = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["Record ID", *(f"-{i}" for i in range(6)), "Question", *options, "Explanation"]
    )
    for i in range(rows):
        writer.writerow([f"rec{i}", *[""] * 6, f"What is {i} and 0?", *range(i, i + 4), "Count."])
    return stream.getvalue()


SCALES: dict[str, Callable[[Any, Sequence[str], int], list[str]]] = {
    "full": lambda cfg, given, rank: [],  # an experiment's own `full` says what that adds
    "smoke": _smaller,
}
"""By name, the overrides that a scale adds to a composed cell, given those added by hand and the
model's largest rank in the experiment."""
