"""The part of an output that is the answer's: what a model writes of a next question is not."""

import re
from collections.abc import Callable

NEXT = re.compile(
    r"<\|?(?:im_end|im_start|eot_id|end|endoftext|user|assistant)\|?>|</s>|\[/?INST\]"
    r"|^[#*\s]*(?:Question|Problem|Q|Human|User)\s*\d*\s*:"
    r"|(?<=[.!?\d}$*)])\s*(?:Question|Problem)\s*\d*:",
    re.MULTILINE,
)
"""What begins a next question, or ends a turn."""
SPACES = dict.fromkeys(map(ord, "\u00a0\u2009\u202f\u2002\u2003\u200a\u3000"), " ")
SIGNS = {0x2212: "-", 0xFF1A: ":", 0x200B: "", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
READ_OF = 20_000
"""Characters of an output that are read: an answer has some thousand at most."""


def plain(output: str) -> str:
    """An output with plain spaces, quotes, minus signs and line ends."""
    text = output[:READ_OF].replace("\r\n", "\n").strip()
    return text if text.isascii() else text.translate(SPACES | SIGNS)


def first_read(output: str, *readers: Callable[[str], str | None]) -> str | None:
    """What the first reader that finds anything, the clearest before the others, finds in the first
    turn that holds anything. A question that is restated before its answer makes no turn empty."""
    for piece in NEXT.split(plain(output)):
        turn = piece.strip()
        for reader in readers if turn else ():
            if (answer := reader(turn)) is not None:
                return answer
    return None
