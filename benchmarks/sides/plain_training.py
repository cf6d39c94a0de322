"""The plain way to train a cell: transformers' Trainer and PEFT, as their documentation shows it.

    python -m benchmarks.sides.plain_training CELL.json ADAPTER

The file is a cell's configuration. Nothing of the harness is used but OSoRA, as a PEFT method.
"""

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)


def dialogues(task: dict[str, Any], seed: int) -> list[tuple[str, str]]:
    """Prompts and answers of a task's files."""
    pairs = []
    for source in task["sources"]:
        for line in Path(source["path"]).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pairs.append((source["prompt"].format(**row), source["response"].format(**row)))
    limit = task["max_rows"]
    return pairs if limit is None else random.Random(seed).sample(pairs, limit)


def encoded(pair: tuple[str, str], tokenizer: Any, task: dict[str, Any]) -> dict[str, list[int]]:
    """A dialogue as the chat template writes it; the loss is on the answer, or on all of it."""
    user = {"role": "user", "content": pair[0]}
    reply = {"role": "assistant", "content": pair[1]}
    chat = {"tokenize": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, **chat)
    ids = tokenizer.apply_chat_template([user, reply], **chat)
    masked = len(prompt) if task["loss_on"] == "answer" else 0
    labels = [-100] * masked + ids[masked:]
    return {"input_ids": ids[: task["max_length"]], "labels": labels[: task["max_length"]]}


def adapter(settings: dict[str, Any]) -> Any:
    """The PEFT configuration that a method's file describes."""
    module, _, name = settings.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**settings)


def arguments(trainer: dict[str, Any], seed: int, folder: str) -> TrainingArguments:
    """The recipe in the Trainer's terms."""
    return TrainingArguments(
        output_dir=folder,
        learning_rate=trainer["learning_rate"],
        per_device_train_batch_size=trainer["micro_batch_size"],
        gradient_accumulation_steps=trainer["batch_size"] // trainer["micro_batch_size"],
        num_train_epochs=trainer["epochs"],
        max_steps=trainer["max_steps"] or -1,
        warmup_steps=trainer["warmup_ratio"],
        lr_scheduler_type=trainer["schedule"],
        weight_decay=trainer["weight_decay"],
        optim=trainer["optimizer"],
        max_grad_norm=trainer["max_grad_norm"],
        bf16=trainer["precision"] == "bfloat16",
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    cell = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    transformers.set_seed(cell["seed"])
    place = cell["model"]["path"]
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="right")
    base = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, cell["model"]["dtype"]))
    model = get_peft_model(base, adapter(cell["method"]["peft"]))
    rows = [encoded(p, tokenizer, cell["task"]) for p in dialogues(cell["task"], cell["seed"])]
    Trainer(
        model=model,
        args=arguments(cell["trainer"], cell["seed"], sys.argv[2]),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    ).train()
    model.save_pretrained(sys.argv[2])


if __name__ == "__main__":
    main()
