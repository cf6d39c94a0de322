"""The two embedded tasks, generated from one seed in the file formats of GSM8K and CommonsenseQA.

Both tasks ask, in a wording of their own, for skills that the embedded model has from its
pre-training (see `osora_bench.toy.pretrain`): two-digit sums and differences, and naming the
lettered option that belongs to a category.  Training, validation and test questions share no
instance of a skill: no operand pair, and no set of five options.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20250514
ROWS = {"train": 1500, "validation": 200, "test": 500}
LETTERS = "ABCDE"
DATA = Path(__file__).resolve().parent / "data"
GSM8K_PROMPT = "Question: {question}\nLet's think step by step\nAnswer:"
COMMONSENSEQA_PROMPT = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nE. {E}\nAnswer:"
MAX_ANSWER_TOKENS = {"gsm8k": 24, "commonsenseqa": 4}

NAMES = ("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "pens", "marbles")
CATEGORIES = {
    "animal": "dog cat horse cow pig sheep goat bear",
    "color": "red blue green white black brown pink gray",
    "fruit": "pear plum peach grape lemon mango cherry fig",
    "tool": "hammer saw drill wrench shovel rake axe file",
    "vehicle": "car bus train truck bike boat plane tram",
    "drink": "tea milk water juice coffee beer wine soda",
}
WORDS = {category: tuple(words.split()) for category, words in CATEGORIES.items()}
CATEGORY_OF = {word: category for category, words in WORDS.items() for word in words}

ADDITION = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in a box. {name} puts in {b} more. How many are in the box?",
    "{name} found {a} {things} today and {b} yesterday. How many {things} is that in all?",
)
SUBTRACTION = (
    "{name} has {a} {things} and gives away {b}. How many {things} does {name} have left?",
    "There are {a} {things} in a box. {name} takes out {b}. How many are in the box?",
    "{name} had {a} {things} and lost {b}. How many {things} are left?",
)
STEMS = (
    "{name} is looking for some kind of {category}. What would {name} choose?",
    "What could {name} point at when asked for a {category}?",
    "If {name} drew a {category}, what would be in the picture?",
)


@dataclass(frozen=True)
class Arithmetic:
    """One instance of the arithmetic skill: `a` plus or minus `b`, all numbers in 0..99."""

    sign: str
    a: int
    b: int

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b

    @property
    def answer(self) -> str:
        """The worked answer with GSM8K's final line, e.g. ``12+30=42\\n#### 42``."""
        return f"{self.a}{self.sign}{self.b}={self.result}\n#### {self.result}"


@dataclass(frozen=True)
class Choice:
    """One instance of the choice skill: which of five `options` belongs to `category`."""

    category: str
    options: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The letter of the one option that belongs to the category."""
        (index,) = (i for i, word in enumerate(self.options) if word in WORDS[self.category])
        return LETTERS[index]

    @property
    def key(self) -> frozenset[str]:
        """What no two questions share: the five options, in whatever order."""
        return frozenset(self.options)


def all_arithmetic(rng: random.Random) -> list[Arithmetic]:
    """Every instance with two-digit operands and a two-digit result.

    Of a sum's two orders only one is an instance, so that no two instances are the same sum.
    """
    pairs = [(a, b) for a in range(10, 90) for b in range(10, 100 - a)]
    sums = [Arithmetic("+", *rng.sample((a, b), 2)) for a, b in pairs if a <= b]
    return sums + [Arithmetic("-", a + b, b) for a, b in pairs]


def sample_choice(rng: random.Random) -> Choice:
    """A category, one of its words and four words of four other categories, in random order."""
    category, *others = rng.sample(list(WORDS), 5)
    options = [rng.choice(WORDS[name]) for name in (category, *others)]
    rng.shuffle(options)
    return Choice(category, tuple(options))


def split_arithmetic(seed: int = SEED) -> dict[str, list[Arithmetic]]:
    """Disjoint instances for each split of `ROWS`; ``rest`` holds those that no task uses."""
    rng = random.Random(f"{seed} arithmetic")
    instances = all_arithmetic(rng)
    rng.shuffle(instances)
    splits, start = {}, 0
    for split, count in ROWS.items():
        splits[split] = instances[start : start + count]
        start += count
    return splits | {"rest": instances[start:]}


def split_choices(seed: int = SEED) -> dict[str, list[Choice]]:
    """Instances for each split of `ROWS`, no two of them with one `Choice.key`."""
    rng = random.Random(f"{seed} choice")
    distinct: dict[frozenset[str], Choice] = {}
    while len(distinct) < sum(ROWS.values()):
        choice = sample_choice(rng)
        distinct.setdefault(choice.key, choice)
    drawn = iter(distinct.values())
    return {split: [next(drawn) for _ in range(count)] for split, count in ROWS.items()}


def gsm8k_row(instance: Arithmetic, rng: random.Random) -> dict[str, Any]:
    """A row of GSM8K's files: question and worked answer."""
    template = rng.choice(ADDITION if instance.sign == "+" else SUBTRACTION)
    question = template.format(
        name=rng.choice(NAMES), things=rng.choice(THINGS), a=instance.a, b=instance.b
    )
    return {"question": question, "answer": instance.answer}


def commonsenseqa_row(instance: Choice, identity: str, rng: random.Random) -> dict[str, Any]:
    """A row of CommonsenseQA's files: stem, concept, five lettered choices and the key."""
    stem = rng.choice(STEMS).format(name=rng.choice(NAMES), category=instance.category)
    choices = [
        {"label": letter, "text": word}
        for letter, word in zip(LETTERS, instance.options, strict=True)
    ]
    return {
        "answerKey": instance.answer,
        "id": identity,
        "question": {"question_concept": instance.category, "choices": choices, "stem": stem},
    }


def commonsenseqa_fields(row: dict[str, Any]) -> dict[str, str]:
    """The fields of `COMMONSENSEQA_PROMPT`, as OpenCompass reads them from a row."""
    choices = {choice["label"]: choice["text"] for choice in row["question"]["choices"]}
    return {"question": row["question"]["stem"], **choices}


def gsm8k_rows(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """GSM8K rows by split."""
    rng = random.Random(f"{seed} gsm8k wording")
    splits = split_arithmetic(seed)
    return {split: [gsm8k_row(instance, rng) for instance in splits[split]] for split in ROWS}


def commonsenseqa_rows(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """CommonsenseQA rows by split."""
    rng = random.Random(f"{seed} commonsenseqa wording")
    return {
        split: [
            commonsenseqa_row(instance, f"toy-{split}-{index:04d}", rng)
            for index, instance in enumerate(instances)
        ]
        for split, instances in split_choices(seed).items()
    }


def files(seed: int = SEED) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Relative file names of the data folder and their rows.

    OpenCompass's loaders take a folder with two fixed file names, so the validation rows stand in
    folders of their own, in the place where the loader looks for the questions to score.  Their
    training file is there because the loader opens it, and has the first ten rows only.
    """
    math, choice = gsm8k_rows(seed), commonsenseqa_rows(seed)
    for suffix, split, shown in (("", "test", None), ("-validation", "validation", 10)):
        yield f"gsm8k{suffix}/train.jsonl", math["train"][:shown]
        yield f"gsm8k{suffix}/test.jsonl", math[split]
        yield f"commonsenseqa{suffix}/train_rand_split.jsonl", choice["train"][:shown]
        yield f"commonsenseqa{suffix}/dev_rand_split.jsonl", choice[split]


def write_data(folder: Path, seed: int = SEED) -> None:
    """Write the data files below `folder`; the same seed gives the same bytes."""
    for name, rows in files(seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8", newline="\n")
