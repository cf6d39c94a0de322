"""The words of the problems. No split uses a phrase, a name or a thing of another.

A phrase of one operation says nothing of another: what is to be computed follows from the text.
"""

from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Words:
    """What one split is worded with: words between spaces, phrases, and those of each operation."""

    names: str
    things: str
    openings: tuple[str, ...]
    steps: dict[str, tuple[str, ...]]
    endings: tuple[str, ...]


WORDS = {
    "train": Words(
        names="""Ada Bruno Carla David Elena Farid Greta Hassan Irene Jonas Karim Lena Marco Nadia
            Omar Paula Quentin Rosa Samir Tessa Ulrich Vera Walter Yara""",
        things="""apples beads bottles bricks buttons cards chairs coins cookies cups eggs flowers
            keys lamps nails oranges pages pens plates seeds shells stamps tickets tiles""",
        openings=(
            "{name} has {a} {things}.",
            "There are {a} {things} in the shop of {name}.",
            "{name} counts {a} {things} in the morning.",
            "{name} starts the week with {a} {things}.",
            "A box that belongs to {name} holds {a} {things}.",
            "{name} collected {a} {things} last year.",
        ),
        steps={
            "+": (
                "{name} buys {b} more.",
                "Then {b} more are delivered.",
                "A friend adds {b} to them.",
                "{name} finds another {b}.",
                "Later {name} receives {b} extra ones.",
                "The number goes up by {b}.",
            ),
            "-": (
                "{name} gives away {b}.",
                "Then {b} of them are sold.",
                "{b} of them break.",
                "{name} loses {b}.",
                "A friend takes {b} of them.",
                "The number goes down by {b}.",
            ),
            "*": (
                "Then {name} has {b} times as many.",
                "The number is multiplied by {b}.",
                "{name} trades each one for {b} new ones.",
                "Soon there are {b} for each one before.",
                "A factory makes {b} copies of each and keeps only the copies.",
                "{name} swaps every single one for a pack of {b}.",
            ),
            "/": (
                "They are shared equally among {b} people, and {name} keeps one share.",
                "{name} puts them into {b} equal bags and keeps one bag.",
                "The number is divided by {b}.",
                "{name} splits them into {b} equal piles and goes on with one pile.",
                "{name} trades every {b} of them for a single new one.",
                "They are spread evenly over {b} shelves, and only one shelf is counted.",
            ),
        },
        endings=(
            "How many {things} does {name} have now?",
            "How many {things} are there in the end?",
            "What is the number of {things} now?",
            "How many {things} is that?",
        ),
    ),
    "validation": Words(
        names="Aron Bella Cyrus Dalia Emil Fiona",
        things="balls candles forks hats pears ropes",
        openings=(
            "At first {name} owns {a} {things}.",
            "{name} keeps {a} {things} at home.",
        ),
        steps={
            "+": ("{name} gets {b} on top of that.", "After that, {b} more come in."),
            "-": ("{name} throws {b} away.", "After that, {b} are missing."),
            "*": (
                "That becomes {b} times the number.",
                "{name} hands each one in and gets {b} for it.",
            ),
            "/": (
                "{name} forms {b} groups of the same size and takes one group.",
                "For each {b} of them {name} gets one new one in exchange.",
            ),
        },
        endings=("How many {things} are left with {name}?", "Count the {things}: how many?"),
    ),
    "test": Words(
        names="Amira Boris Celia Dmitri Esther Felix Gloria Hector Ingrid Julian Kira Lukas",
        things="""baskets blankets carrots crayons jars lemons magnets marbles pencils ribbons
            spoons stickers""",
        openings=(
            "In the beginning {name} possesses {a} {things}.",
            "{a} {things} lie on the table of {name}.",
            "{name} brought {a} {things} to school.",
        ),
        steps={
            "+": (
                "{name} picks up {b} further ones.",
                "Someone brings {name} {b} additional ones.",
                "{b} are put beside them.",
            ),
            "-": (
                "{name} hands {b} over to a neighbour.",
                "{b} get used up.",
                "{name} has to return {b}.",
            ),
            "*": (
                "The amount grows to {b} times its size.",
                "In place of every one, {name} is given {b}.",
                "{b} of the same kind replace each one.",
            ),
            "/": (
                "{b} friends divide them evenly, and {name} is one of these friends.",
                "{name} packs equal amounts into {b} crates and opens one crate only.",
                "Just one out of every {b} remains.",
            ),
        },
        endings=(
            "At the end, how many {things} does {name} hold?",
            "So how many {things} are there by now?",
            "Find how many {things} this makes.",
        ),
    ),
}
