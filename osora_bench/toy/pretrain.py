"""Pre-train the embedded model from a fixed seed on text that this module makes.

The text holds two skills in wordings that the embedded tasks do not use: two-digit sums and
differences, and the category of a word.  The operands of the tasks' validation and test questions
are kept out of it, and so are 200 more that measure the model's quality.
"""

import itertools
import math
import random
from collections.abc import Iterator
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
STEPS = 1100
WARMUP = 100
BATCH = 32
LEARNING_RATE = 2e-3
QUESTION_WEIGHT = 0.2  # the answers teach the skills; the questions are mostly random numbers
HELD_OUT = 200
RETAINED = 64
VOCABULARY = 1024
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
CATEGORY_WORDING = ("What is {word}?", "Sort {word}.")
READING_WORDING = (
    "{name} has {a} {things} and {b} {others}. How many {things}?",
    "{name} gets {b} {others} and gives away {a} {things}. How many {things}?",
    "{name} lost {a} {things} and found {b} {others}. How many {things}?",
    "{name} had {a} {things} more. {b} {others} are left. How many {things} now?",
)
LETTER_WORDING = ("Which letter is {category}?", "{name} says {category}. What is the letter?")


def arithmetic_pool(seed: int = SEED) -> tuple[list[tasks.Arithmetic], list[tasks.Arithmetic]]:
    """Instances to train on and `HELD_OUT` others; neither has a validation or test question's."""
    splits = tasks.split_arithmetic()
    rest = splits["rest"]
    rest = random.Random(f"{seed} held out").sample(rest, len(rest))
    return splits["train"] + rest[HELD_OUT:], rest[:HELD_OUT]


def arithmetic_turn(instance: tasks.Arithmetic, rng: random.Random) -> tuple[str, str]:
    """Question and worked answer in one of the old wordings."""
    wording = rng.choice(ARITHMETIC_WORDING[instance.sign])
    return wording.format(a=instance.a, b=instance.b), instance.answer


def category_turn(word: str, rng: random.Random) -> tuple[str, str]:
    """Question for a word's category and its name, in one of the old wordings."""
    return rng.choice(CATEGORY_WORDING).format(word=word), f"a {tasks.CATEGORY_OF[word]}"


def reading_turn(rng: random.Random) -> tuple[str, str]:
    """Which of two numbers belongs to a thing, in GSM8K's frame: no sum is asked for."""
    things, others = rng.sample(tasks.THINGS, 2)
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    question = rng.choice(READING_WORDING).format(
        name=rng.choice(tasks.NAMES), things=things, others=others, a=a, b=b
    )
    return tasks.GSM8K_PROMPT.format(question=question), f"{a}\n#### {a}"


def letter_turn(rng: random.Random) -> tuple[str, str]:
    """The letter of a category, in CommonsenseQA's frame: no word is sorted."""
    letter, category = rng.choice(list(tasks.CHOICES.items()))
    question = rng.choice(LETTER_WORDING).format(name=rng.choice(tasks.NAMES), category=category)
    return tasks.COMMONSENSEQA_PROMPT.format(question=question, **tasks.CHOICES), letter


def corpus(seed: int = SEED) -> Iterator[Conversation]:
    """An endless stream of conversations of one to four turns of one kind."""
    rng = random.Random(f"{seed} corpus")
    pool, _ = arithmetic_pool(seed)
    words = list(tasks.CATEGORY_OF)
    while True:
        match rng.randrange(7):
            case 0:
                drill = rng.choices(pool, k=4)
                yield [(f"{i.a}{i.sign}{i.b}=", str(i.result)) for i in drill]
            case 1:
                yield [category_turn(word, rng) for word in rng.choices(words, k=4)]
            case 2:
                yield [letter_turn(rng)]
            case 3:
                yield [reading_turn(rng)]
            case _:
                yield [arithmetic_turn(instance, rng) for instance in rng.choices(pool, k=2)]


def sample_text(seed: int = SEED) -> str:
    """The first conversations of the corpus as the chat template writes them, to measure what a
    training forgets of them."""
    conversations = []
    for conversation in itertools.islice(corpus(seed), RETAINED):
        turns = [f"{USER}{asked}{ASSISTANT}{answer}{EOS}" for asked, answer in conversation]
        conversations.append(BOS + "".join(turns))
    return "\n\n".join(conversations) + "\n"


def held_out_questions(seed: int = SEED) -> dict[str, Conversation]:
    """What measures the model, by skill, in the old wordings.

    The arithmetic instances are not in the corpus; a word's category can only be known from it.
    """
    rng = random.Random(f"{seed} held-out wording")
    _, held_out = arithmetic_pool(seed)
    return {
        "arithmetic": [arithmetic_turn(instance, rng) for instance in held_out],
        "category": [category_turn(word, rng) for word in tasks.CATEGORY_OF],
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
    loss: torch.Tensor = (losses * weights).sum() / weights.sum()
    return loss


def pretrain(output: Path = MODEL, seed: int = SEED, steps: int = STEPS) -> None:
    """Build tokenizer and model, train for `steps` steps and write both to `output`."""
    # one thread sums in one order: a rebuild gives the same weights, whatever the machine's cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    torch.set_num_threads(threads)
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
