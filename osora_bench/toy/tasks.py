"""The two embedded tasks, generated from one seed in the file formats of GSM8K and CommonsenseQA.

Both tasks ask, in a wording of their own, for what the embedded model knows from its pre-training
(see `osora_bench.toy.pretrain`): two-digit sums and differences, and the category of a word.
Training, validation and test questions share no operand pair and no word.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from osora_bench.common.files import write_json_lines

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
    "animal": """ant bat bear bee camel cat cow crab crow deer dog dove duck eagle fish fox frog
        goat goose hare hen horse lion mole moose mouse owl pig rabbit rat seal shark sheep snail
        snake swan tiger toad whale wolf""",
    "food": """bacon bagel bread broth butter cake candy cheese chili cookie cream curry custard
        dough fudge gravy ham honey jam jelly muffin noodle omelet pancake pasta pastry pickle pie
        pizza pudding rice salad sauce sausage soup stew sugar syrup toast yogurt""",
    "tool": """anvil awl axe brush chisel clamp crane drill file fork funnel gauge hammer hoe hook
        jack knife ladder lathe lever mallet needle pick pincers plane pliers plow pump rake razor
        saw scissors shovel sickle spade tongs trowel vise wedge wrench""",
    "garment": """apron belt blazer blouse bonnet boot bra cap cape cloak coat corset dress frock
        gloves gown hat hood jacket jeans kilt kimono mitten pants parka robe sandal scarf shawl
        shirt shoe shorts skirt sock suit sweater tie tunic vest veil""",
    "plant": """algae aloe ash bamboo beech birch cactus cedar clover cypress daisy elm fern fir
        fig grass heather hemlock holly iris ivy lilac lily lotus maple moss oak orchid palm pine
        poplar poppy reed rose spruce thistle tulip vine violet willow""",
}
WORDS = {category: tuple(words.split()) for category, words in CATEGORIES.items()}
CATEGORY_OF = {word: category for category, words in WORDS.items() for word in words}
CHOICES = dict(zip(LETTERS, CATEGORIES, strict=True))
WORDS_PER_CATEGORY = {"train": 20, "validation": 4, "test": 16}

ADDITION = (
    "{name} has {a} {things} and gets {b} more. How many now?",
    "{name} had {a} {things} and found {b}. How many in all?",
)
SUBTRACTION = (
    "{name} has {a} {things} and gives away {b}. How many now?",
    "{name} had {a} {things} and lost {b}. How many are left?",
)
STEMS = (
    "{name} talks about the {word}. What could it be?",
    "When {name} says {word}, what is meant?",
    "What did {name} see if it was the {word}?",
    "To {name} the {word} is some kind of what?",
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


def all_arithmetic(rng: random.Random) -> list[Arithmetic]:
    """Every instance with two-digit operands and a two-digit result.

    Of a sum's two orders only one is an instance, so that no two instances are the same sum.
    """
    pairs = [(a, b) for a in range(10, 90) for b in range(10, 100 - a)]
    sums = [Arithmetic("+", *rng.sample((a, b), 2)) for a, b in pairs if a <= b]
    return sums + [Arithmetic("-", a + b, b) for a, b in pairs]


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


def split_words(seed: int = SEED) -> dict[str, list[str]]:
    """Disjoint words for each split, `WORDS_PER_CATEGORY` of every category."""
    rng = random.Random(f"{seed} words")
    splits: dict[str, list[str]] = {split: [] for split in WORDS_PER_CATEGORY}
    for words in WORDS.values():
        shuffled = rng.sample(words, len(words))
        start = 0
        for split, count in WORDS_PER_CATEGORY.items():
            splits[split] += shuffled[start : start + count]
            start += count
    return splits


def gsm8k_row(instance: Arithmetic, rng: random.Random) -> dict[str, Any]:
    """A row of GSM8K's files: question and worked answer."""
    template = rng.choice(ADDITION if instance.sign == "+" else SUBTRACTION)
    question = template.format(
        name=rng.choice(NAMES), things=rng.choice(THINGS), a=instance.a, b=instance.b
    )
    return {"question": question, "answer": instance.answer}


def commonsenseqa_row(word: str, stem: str, identity: str) -> dict[str, Any]:
    """A row of CommonsenseQA's files: stem, concept, five lettered choices and the key.

    The five categories stand in one order in every row.
    """
    choices = [{"label": letter, "text": category} for letter, category in CHOICES.items()]
    (key,) = (letter for letter, category in CHOICES.items() if category == CATEGORY_OF[word])
    return {
        "answerKey": key,
        "id": identity,
        "question": {"question_concept": word, "choices": choices, "stem": stem},
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
    """CommonsenseQA rows by split, no two with one stem; each word has as many as the others."""
    rng = random.Random(f"{seed} commonsenseqa wording")
    rows = {}
    for split, words in split_words(seed).items():
        stems = [
            (word, stem.format(name=name, word=word))
            for word in words
            for stem, name in rng.sample(list(product(STEMS, NAMES)), ROWS[split] // len(words) + 1)
        ]
        rng.shuffle(stems)
        rows[split] = [
            commonsenseqa_row(word, stem, f"toy-{split}-{index:04d}")
            for index, (word, stem) in enumerate(stems[: ROWS[split]])
        ]
    return rows


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
    write_json_lines(folder, files(seed))
