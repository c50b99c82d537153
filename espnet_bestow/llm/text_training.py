"""Training a small causal LM on lines of text, resumable after any interruption."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espnet_bestow.llm.text_config import TextTrainingConfig, new_model
from espnet_bestow.llm.text_lines import (
    IGNORED,
    bucketed_batches,
    collate,
    encode_lines,
    endless_batches,
)
from espnet_bestow.muon import Muon, by_kind


class ResumeError(ValueError):
    """A checkpoint that belongs to another run."""


@dataclass(frozen=True)
class TextData:
    """Lines to learn from and lines to measure on; and examples of tasks as token ids, see ``unlearned``."""

    train: Sequence[str]
    valid: Sequence[str]
    train_tasks: Sequence[Sequence[int]] = ()
    valid_tasks: Sequence[Sequence[int]] = ()


@dataclass
class Totals:
    """Sums over tokens."""

    loss: float = 0.0
    correct: float = 0.0
    tokens: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: its mean loss (), logits (B, U, V) and labels (B, U)."""
        tokens = int((labels != IGNORED).sum())
        self.loss += float(loss.detach()) * tokens
        self.correct += float((logits.detach().argmax(-1) == labels).sum())
        self.tokens += tokens

    def means(self) -> dict[str, float]:
        """Loss in nats, accuracy and perplexity, per token."""
        loss = self.loss / self.tokens
        numbers = {
            "loss": loss,
            "acc": self.correct / self.tokens,
            "ppl": math.exp(min(loss, 50.0)),
        }
        return {name: round(value, 6) for name, value in numbers.items()}


def losses(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy () of labels (B, U), and logits (B, U, V)."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED), logits


@torch.no_grad()
def measure(model: PreTrainedModel, rows: Sequence[Tensor], batch_size: int) -> Totals:
    """Loss of encoded lines."""
    model.eval()
    totals = Totals()
    for batch in bucketed_batches([len(row) for row in rows], batch_size, seed=0):
        ids, labels = (t.to(model.device) for t in collate([rows[i] for i in batch]))
        totals.add(*losses(model, ids, labels), labels)
    return totals


class TextTraining:
    """One run in one folder.

    A run is cut into intervals of ``eval_interval`` steps. Everything random within an interval is
    a function of the seed and the interval's number, so a run that continues from the checkpoint
    at an interval's end repeats the uninterrupted one.

    Args:
        config: model and optimisation.
        tokenizer: of the new LLM.
        data: text.
        output_dir: gets the LLM, history.json and checkpoint.pth.
        seed: of weights and order.
        device: torch device.
    """

    def __init__(
        self,
        config: TextTrainingConfig,
        tokenizer: PreTrainedTokenizerBase,
        data: TextData,
        output_dir: Path,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.config, self.tokenizer = config, tokenizer
        self.output_dir, self.seed = output_dir, seed
        torch.manual_seed(seed)
        self.model = new_model(config.model, tokenizer)
        nn.Module.to(self.model, device)  # transformers' own is typed for one argument less
        context = getattr(self.model.config, "max_position_embeddings", None)
        self.train_rows = [*encode_lines(tokenizer, data.train, context), *map(torch.tensor, data.train_tasks)]
        self.valid_rows = [*encode_lines(tokenizer, data.valid, context), *map(torch.tensor, data.valid_tasks)]
        self.optimizer = make_optimizer(self.model, config)
        self.step = 0
        self.history: list[dict[str, Any]] = []

    @property
    def checkpoint(self) -> Path:
        """Where the state to resume from lies."""
        return self.output_dir / "checkpoint.pth"

    def run(self, resume: bool = False) -> None:
        """Trains to the last step and writes the LLM."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if resume and self.checkpoint.exists():
            self.load()
        bar = tqdm(total=self.config.steps, initial=self.step, desc="text LLM", unit="step")
        lengths = [len(row) for row in self.train_rows]
        batches = endless_batches(lengths, self.config.batch_size, self.seed, skip=self.step)
        with bar:
            while self.step < self.config.steps:
                self.history.append(self._interval(batches, bar))
                self.save()
                bar.write(_summary(self.history[-1], self.step))
        self.export()

    def _interval(self, batches: Iterator[list[int]], bar: tqdm) -> dict[str, Any]:
        """Trains to the next multiple of eval_interval, then validates."""
        started = time.perf_counter()
        number = self.step // self.config.eval_interval + 1
        torch.manual_seed(self.seed + number)
        totals = Totals()
        self.model.train()
        for _ in range(min(self.config.eval_interval, self.config.steps - self.step)):
            rows = [self.train_rows[i] for i in next(batches)]
            self._update(rows, totals)
            bar.update()
            if self.step % self.config.log_interval == 0:
                bar.set_postfix(totals.means())
        valid = measure(self.model, self.valid_rows, self.config.batch_size)
        seconds = round(time.perf_counter() - started, 2)
        return {
            "epoch": number,
            "train": totals.means(),
            "valid": valid.means(),
            "seconds": seconds,
        }

    def _update(self, rows: Sequence[Tensor], totals: Totals) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        ids, labels = (t.to(self.model.device) for t in collate(rows))
        loss, logits = losses(self.model, ids, labels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        totals.add(loss, logits, labels)
        self.step += 1

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        config = dataclasses.asdict(self.config)
        return {
            **config,
            "seed": self.seed,
            "vocab_size": len(self.tokenizer),
            "lines": len(self.train_rows),
        }

    def save(self) -> None:
        """Writes checkpoint.pth and history.json, each beside its target and then renamed."""
        state = {
            "identity": self._identity(),
            "step": self.step,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        part = self.checkpoint.with_suffix(".part")
        try:
            torch.save(state, part)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(self.output_dir).free // 2**20
            raise OSError(f"cannot write {self.checkpoint} ({free} MiB free on its disk): {error}") from error
        part.replace(self.checkpoint)
        self._write_history()

    def load(self) -> None:
        """Continues from checkpoint.pth; one of another run is an error."""
        state = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        mine, theirs = self._identity(), state["identity"]
        differing = [f"{k}: {theirs.get(k)!r} there, {v!r} here" for k, v in mine.items() if theirs.get(k) != v]
        if differing:
            raise ResumeError(f"{self.checkpoint} is of another run ({'; '.join(differing)})")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self._write_history()

    def _write_history(self) -> None:
        part = self.output_dir / "history.part"
        part.write_text(json.dumps(self.history, indent=1))
        part.replace(self.output_dir / "history.json")

    def export(self) -> None:
        """Writes the LLM as a transformers directory."""
        self.model.generation_config.eos_token_id = self.tokenizer.eos_token_id
        self.model.save_pretrained(self.output_dir)
        self.tokenizer.save_pretrained(self.output_dir)


def make_optimizer(model: PreTrainedModel, config: TextTrainingConfig) -> Muon:
    """Muon, with AdamW for embeddings and for vectors, which do not decay."""
    groups = by_kind(model, [model.get_output_embeddings()])
    vectors = [each for group in groups for each in group["params"] if each.ndim <= 1]
    tables = [each for each in groups[-1]["params"] if each.ndim > 1]
    groups[-1:] = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
    return Muon(groups, lr=config.lr, weight_decay=config.weight_decay, every=2)  # half of the time of 1


def learning_rate(config: TextTrainingConfig, step: int) -> float:
    """Rate of step number ``step`` (from 0): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def _summary(entry: dict[str, Any], step: int) -> str:
    train, valid = entry["train"], entry["valid"]
    return (
        f"step {step}  train loss {train['loss']:.3f} acc {train['acc']:.3f}  "
        f"valid loss {valid['loss']:.3f} acc {valid['acc']:.3f} ppl {valid['ppl']:.2f}  "
        f"{entry['seconds']:.0f} s"
    )
