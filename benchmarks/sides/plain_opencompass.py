"""The command `opencompass` under transformers 5, which has no `batch_encode_plus` any more."""

import sys

from opencompass.cli.main import main
from transformers import PreTrainedTokenizerBase

PreTrainedTokenizerBase.batch_encode_plus = lambda self, texts, **how: self(texts, **how)

if __name__ == "__main__":
    sys.exit(main())
