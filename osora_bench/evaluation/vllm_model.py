"""The same model answered for by vLLM, on a GPU where that is installed (`eval.backend=vllm`).

vLLM loads weights from a folder, so the adapter is written out first: as a LoRA adapter on the
untouched base where that is exact, else merged into a copy of the base model.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft

from osora_bench.common.errors import UserError
from osora_bench.evaluation.checks import check_installed
from osora_bench.evaluation.in_memory_model import Finished, InMemoryModel
from osora_bench.models import merging
from osora_bench.models.context import UNBOUNDED
from osora_bench.osora import OsoraConfig, save_lora
from osora_bench.osora.export import write_base

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM can be told to make room for."""


class VllmModel(InMemoryModel):
    """As `InMemoryModel`, with the answers made by vLLM; perplexities are not (`evaluate.prepare`
    refuses them).

    Args:
        source: folder or hub id of the base model as it was loaded.
        untouched: whether the base weights still are as they were loaded.
        folder: where the adapter or the merged model is written.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: str,
        untouched: bool,
        folder: Path,
        **settings: Any,
    ) -> None:
        check_installed()
        super().__init__(model, tokenizer, **settings)
        if self.altered:
            raise UserError(
                f"eval.backend=vllm: the model's generation_config.json sets "
                f"{', '.join(self.altered)}; eval.backend=transformers answers with that"
            )
        from vllm import LLM

        path, lora = exported(model, source if untouched else None, folder)
        rank = 0 if lora is None else lora_rank(model)
        options = {"enable_lora": True, "max_lora_rank": rank} if lora is not None else {}
        with _off_the_gpu(model):
            self._engine = LLM(
                model=path,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=None if self.max_seq_len == UNBOUNDED else self.max_seq_len,
                enable_prefix_caching=True,
                **options,
            )
        self._lora = lora

    def _continue(
        self,
        prompts: list[list[int]],
        room: list[int],
        finished: Finished,
        stopped: Callable[[list[int]], bool] | None,
    ) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        # what `stopped` would end is cut off at the stop text afterwards, by `_text`
        settings = [
            SamplingParams(
                temperature=0,
                max_tokens=limit,
                stop_token_ids=self.eos_ids,
                repetition_penalty=self.penalty,
            )
            for limit in room
        ]
        request = None if self._lora is None else LoRARequest("cell", 1, str(self._lora))
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._engine.generate(inputs, settings, lora_request=request, use_tqdm=False)
        for index, output in enumerate(outputs):
            finished(index, list(output.outputs[0].token_ids))


def exported(model: Any, source: str | None, folder: Path) -> tuple[str, Path | None]:
    """What vLLM is to load: a model's folder, and the folder of a LoRA adapter on it or None.

    Args:
        source: where the base weights lie; None if those in memory are others by now.
    """
    if not hasattr(model, "peft_config"):
        if source is not None:
            return source, None
        model.save_pretrained(folder / "whole")
        return str(folder / "whole"), None
    if source is None or lora_rank(model) is None:
        return str(_merged(model, folder / "merged")), None
    if isinstance(model.active_peft_config, OsoraConfig):
        save_lora(model, folder / "lora", model.active_adapter)
    else:
        model.save_pretrained(str(folder / "lora"))
    return source, folder / "lora"


def lora_rank(model: Any) -> int | None:
    """The rank that vLLM must make room for; None where the adapter is no LoRA that it can serve.

    It serves no DoRA, no whole modules, no biases and no rank above 512. A start of PEFT's own
    other than LoRA's (PiSSA, OLoRA, ...) changes the base weights.
    """
    config = model.active_peft_config
    plain = isinstance(config, OsoraConfig) or (
        type(config) is peft.LoraConfig and isinstance(config.init_lora_weights, bool)
    )
    if not plain or config.use_dora or getattr(config, "use_rslora", False):
        return None
    if config.modules_to_save or config.bias != "none":
        return None
    rank = max(config.r, *config.rank_pattern.values(), 0)
    return next((size for size in LORA_RANKS if size >= rank), None)


def _merged(model: Any, folder: Path) -> Path:
    merging.merge(
        model,
        "eval.backend=vllm, which serves no adapter of this kind beside the weights",
        "eval.backend=transformers answers with it as it is",
        safe=True,
    )
    try:
        write_base(model, folder, model.active_adapter)
    finally:
        model.unmerge_adapter()
    return folder


@contextlib.contextmanager
def _off_the_gpu(model: Any) -> Iterator[None]:
    """Leave the GPU to vLLM while it takes its share of the memory."""
    device = next(model.parameters()).device
    model.to("cpu")
    try:
        yield
    finally:
        model.to(device)
