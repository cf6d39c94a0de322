"""Pre-train the embedded model from a fixed seed on text that this module makes.

The text holds two skills in wordings that the embedded tasks do not use: two-digit sums and
differences, and naming the lettered option that belongs to a category.  What the tasks ask in
their validation and test questions is kept out of it, and so are 200 questions per skill that
measure the model's quality.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from osora_bench.toy import tasks

MODEL = Path(__file__).resolve().parent / "model"
SEED = 7
STEPS = 1600
WARMUP = 100
BATCH = 32
LEARNING_RATE = 2e-3
QUESTION_WEIGHT = 0.1  # the answers teach the skills; the questions are mostly random numbers
HELD_OUT = 200
VOCABULARY = 640
CONTEXT = 256

BOS, EOS, PAD, USER, ASSISTANT = "<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('the roles are user and assistant') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

Conversation = list[tuple[str, str]]
"""Pairs of what the user says and what the assistant answers."""

ARITHMETIC_WORDING = {
    "+": ("Add {a} and {b}.", "What is {a} plus {b}?"),
    "-": ("From {a} subtract {b}.", "What is {a} minus {b}?"),
}
CHOICE_WORDING = ("Which is the {wanted}?", "Pick the {wanted}.")


@dataclass(frozen=True)
class Pools:
    """The skill instances that pre-training may use, and those held out to measure it."""

    arithmetic: list[tasks.Arithmetic]
    held_out_arithmetic: list[tasks.Arithmetic]
    held_out_choices: list[tasks.Choice]
    reserved: frozenset[frozenset[str]]

    def sample_choice(self, rng: random.Random) -> tasks.Choice:
        """A choice whose five options no validation, test or held-out question has."""
        while (choice := tasks.sample_choice(rng)).key in self.reserved:
            pass
        return choice


def pools(seed: int = SEED) -> Pools:
    """Separate what is trained on from what is asked later."""
    rng = random.Random(f"{seed} held out")
    arithmetic, choices = tasks.split_arithmetic(), tasks.split_choices()
    rest = rng.sample(arithmetic["rest"], len(arithmetic["rest"]))
    reserved = {choice.key for split in ("validation", "test") for choice in choices[split]}
    held_out: dict[frozenset[str], tasks.Choice] = {}
    while len(held_out) < HELD_OUT:
        choice = tasks.sample_choice(rng)
        if choice.key not in reserved:
            held_out[choice.key] = choice
    return Pools(
        arithmetic["train"] + rest[HELD_OUT:],
        rest[:HELD_OUT],
        list(held_out.values()),
        frozenset(reserved | held_out.keys()),
    )


def arithmetic_turn(instance: tasks.Arithmetic, rng: random.Random) -> tuple[str, str]:
    """Question and worked answer in one of the old wordings."""
    wording = rng.choice(ARITHMETIC_WORDING[instance.sign])
    return wording.format(a=instance.a, b=instance.b), instance.answer


def choice_turn(
    options: tuple[str, ...], wanted: str, answer: str, rng: random.Random
) -> tuple[str, str]:
    """The lettered options and the question for the `wanted` one, in one of the old wordings."""
    listing = " ".join(
        f"{letter} {word}" for letter, word in zip(tasks.LETTERS, options, strict=False)
    )
    return f"{listing} {rng.choice(CHOICE_WORDING).format(wanted=wanted)}", answer


def drill(pool: Pools, rng: random.Random) -> Conversation:
    """Four bare sums or differences and the categories of four words."""
    turns = []
    for instance in rng.choices(pool.arithmetic, k=4):
        turns.append((f"{instance.a}{instance.sign}{instance.b}=", str(instance.result)))
        word, category = rng.choice(list(tasks.CATEGORY_OF.items()))
        turns.append((f"What is {word}?", f"a {category}"))
    return turns


def worked_sums(pool: Pools, rng: random.Random) -> Conversation:
    """Two questions of the arithmetic skill."""
    return [arithmetic_turn(instance, rng) for instance in rng.choices(pool.arithmetic, k=2)]


def choices(pool: Pools, rng: random.Random) -> Conversation:
    """Up to four questions about one list of two to five options.

    Short lists and questions that name the option itself are the easy cases from which the model
    learns to look up a letter.
    """
    options = pool.sample_choice(rng).options[: rng.choice((2, 3, 4, 5, 5, 5))]
    turns: Conversation = []
    for word in rng.sample(options, min(4, len(options))):
        wanted = tasks.CATEGORY_OF[word] if rng.random() < 0.6 else word
        letter = tasks.LETTERS[options.index(word)]
        if turns:
            turns.append((rng.choice(CHOICE_WORDING).format(wanted=wanted), letter))
        else:
            turns.append(choice_turn(options, wanted, letter, rng))
    return turns


def corpus(seed: int = SEED) -> Iterator[Conversation]:
    """An endless stream of conversations; half of them are of the choice skill."""
    rng, pool = random.Random(f"{seed} corpus"), pools(seed)
    kinds = (drill, worked_sums, choices, choices)
    while True:
        yield rng.choice(kinds)(pool, rng)


def held_out_questions(seed: int = SEED) -> dict[str, Conversation]:
    """Questions in the old wordings whose instances are not in the corpus, by skill."""
    rng, pool = random.Random(f"{seed} held-out wording"), pools(seed)
    return {
        "arithmetic": [arithmetic_turn(instance, rng) for instance in pool.held_out_arithmetic],
        "choice": [
            choice_turn(choice.options, choice.category, choice.answer, rng)
            for choice in pool.held_out_choices
        ],
    }


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits: lossless for any text, and numbers stay aligned."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tokenizer_texts(seed: int = SEED) -> Iterator[str]:
    """What the tokenizer is built from: the corpus' beginning and the tasks' training questions."""
    stream = corpus(seed)
    for _ in range(1500):
        yield from (f"{question}\n{answer}" for question, answer in next(stream))
    for row in tasks.gsm8k_rows()["train"]:
        yield tasks.GSM8K_PROMPT.format(**row)
    for row in tasks.commonsenseqa_rows()["train"]:
        yield tasks.COMMONSENSEQA_PROMPT.format(**tasks.commonsenseqa_fields(row))


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model: 4 layers, 128 wide, v_proj 128 -> 64."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        # 1 / sqrt(hidden): with the default 0.02 attention forms several times later.
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def render(conversation: Conversation) -> str:
    """`CHAT_TEMPLATE` applied to a conversation, without the cost of the template engine."""
    return BOS + "".join(f"{USER}{said}{ASSISTANT}{answer}{EOS}" for said, answer in conversation)


def weighted_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: list[Conversation]
) -> torch.Tensor:
    """Mean cross-entropy per token, answers weighing 1 and questions `QUESTION_WEIGHT`."""
    encoded = tokenizer(
        [render(conversation) for conversation in batch],
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids = encoded["input_ids"]
    opened = (ids == tokenizer.convert_tokens_to_ids(ASSISTANT)).cumsum(1)
    closed = (ids == tokenizer.eos_token_id).cumsum(1)
    weights = torch.where((opened > closed)[:, :-1], 1.0, QUESTION_WEIGHT)
    weights = weights * encoded["attention_mask"][:, 1:]
    logits = model(input_ids=ids[:, :-1]).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()


def pretrain(output: Path = MODEL, seed: int = SEED, steps: int = STEPS) -> None:
    """Build tokenizer and model, train for `steps` steps and write both to `output`."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(tokenizer_texts(seed))
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    stream = corpus(seed)
    progress = tqdm(range(steps), desc="pre-training", unit="step")
    for step in progress:
        loss = weighted_loss(model, tokenizer, [next(stream) for _ in range(BATCH)])
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


@torch.no_grad()
def answers(model: Any, tokenizer: Any, questions: list[str], max_new_tokens: int) -> list[str]:
    """Greedy answers of `model` to `questions`, each one user turn, in batches of 100."""
    found: list[str] = []
    for start in range(0, len(questions), 100):
        messages = [
            [{"role": "user", "content": question}] for question in questions[start : start + 100]
        ]
        inputs = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def quality(model_dir: Path = MODEL) -> dict[str, float]:
    """Accuracy in percent on held-out questions of each pre-training skill, in the old wording."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = LlamaForCausalLM.from_pretrained(model_dir).eval()
    scores = {}
    for skill, turns in held_out_questions().items():
        found = answers(model, tokenizer, [question for question, _ in turns], max_new_tokens=24)
        right = sum(text == answer for text, (_, answer) in zip(found, turns, strict=True))
        scores[skill] = 100 * right / len(turns)
    return scores
