"""The command `opencompass` under transformers 5, which has no `batch_encode_plus` any more, with
OSoRA among PEFT's methods."""

import sys

from opencompass.cli.main import main
from transformers import PreTrainedTokenizerBase

import osora_bench.osora  # noqa: F401 (PEFT is told of it)

PreTrainedTokenizerBase.batch_encode_plus = lambda self, texts, **how: self(texts, **how)

if __name__ == "__main__":
    sys.exit(main())
