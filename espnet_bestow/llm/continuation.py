"""How a text LLM goes on with what it is given: what BLSP teaches a model to do with speech itself."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


class Continuer:
    """Greedy continuations, in batches of prompts of like length.

    Args:
        model: the LLM.
        end: its end token.
        max_tokens: longest continuation; one that does not end there is cut.
        batch_size: prompts at once.
    """

    def __init__(self, model: PreTrainedModel, end: int, max_tokens: int = 64, batch_size: int = 16):
        self.model = model.eval()
        self.end = end
        self.batch_size = batch_size
        # Given whole, or an LLM's own settings would decide whether it draws.
        self.config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=end, pad_token_id=end)

    def __call__(self, prompts: Mapping[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
        """Prompts by id -> id and continuation of each, as they are ready; token ids both, without an end token."""
        order = sorted(prompts, key=lambda uid: len(prompts[uid]))
        for first in range(0, len(order), self.batch_size):
            uids = order[first : first + self.batch_size]
            for uid, ids in zip(uids, self._written([prompts[uid] for uid in uids]).tolist(), strict=True):
                yield uid, ids[: ids.index(self.end)] if self.end in ids else ids

    @torch.inference_mode()
    def _written(self, prompts: list[list[int]]) -> Tensor:
        """What follows each prompt, (B, U)."""
        width = max(map(len, prompts))
        pad = [width - len(ids) for ids in prompts]
        ids = torch.tensor([[self.end] * n + row for n, row in zip(pad, prompts, strict=True)])
        mask = (torch.arange(width) >= torch.tensor(pad)[:, None]).long()
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        out = self.model.generate(ids, attention_mask=mask, generation_config=self.config)  # type: ignore[operator]
        assert isinstance(out, Tensor)
        return out[:, width:]
