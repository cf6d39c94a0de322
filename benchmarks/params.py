"""`osora-bench params` for all models and methods, beside counting every line on the whole model.

    python -m benchmarks.params

The peer builds each line's model on the meta device, puts PEFT's adapter on it and counts, as a
script without the harness would. The limit is the import of torch, transformers and PEFT alone.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, cost_of, quartiles, run

MOST_SECONDS = 5
IMPORTS = "import torch, transformers, peft; peft.LoraConfig, transformers.LlamaForCausalLM"
WHOLE = """\
from osora_bench.cli.main import main
from osora_bench.models import counting
counting.is_layerwise = lambda method: False  # every line on the whole model
main(["params"])
"""


def rows(*, repeats: int = 3) -> Iterator[Row]:
    """Each in `repeats` fresh processes; the peer in one."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        whole = cost_of([sys.executable, "-c", WHOLE], output)
        expected = output.read_text(encoding="utf-8")
        own = []
        for _ in range(repeats):
            own.append(cost_of([sys.executable, "-m", "osora_bench.cli.main", "params"], output))
            if output.read_text(encoding="utf-8") != expected:
                raise RuntimeError("`params` counts otherwise than on the whole models")
        least = cost_of([sys.executable, "-c", IMPORTS], output)
    clock = statistics.median(cost.clock for cost in own)
    yield Row(
        "params, all models: every line on the whole model / `params`",
        quartiles([whole.processor / cost.processor for cost in own]),
        whole.processor / least.processor,
        f"≤ {MOST_SECONDS} s by the clock",
        f"{whole.processor:.1f} / {statistics.median(c.processor for c in own):.1f} s; "
        f"{clock:.1f} s by the clock",
        clock > MOST_SECONDS,
    )


if __name__ == "__main__":
    run(rows)
