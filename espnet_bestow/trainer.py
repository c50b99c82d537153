"""ESPnet's trainer with checkpoints that survive a crash, a history file, and progress a person can read."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from espnet2.train import trainer as espnet_trainer
from espnet2.train.reporter import Reporter, SubReporter, WeightedAverage, aggregate
from espnet2.train.trainer import Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from espnet_bestow.shared_training import SharedModel, training_together

Averages = tuple[dict[str, Tensor], Tensor]
"""name -> mean (...), and the sum of the weights (...)."""


class BestowTrainer(Trainer):
    """Trains exactly as ESPnet's trainer does; overrides only what surrounds the steps.

    ESPnet seeds every epoch with seed + epoch, so a run that continues from the last finished epoch repeats the
    uninterrupted one, provided the checkpoint of that epoch is whole. This class sees to that.
    """

    criteria: ClassVar[Sequence[tuple[str, str, str]]] = ()
    """``best_model_criterion`` of the present run, of which ESPnet tells :meth:`resume` nothing."""

    @classmethod
    def run(cls, **kwargs: Any) -> None:
        """The whole training, with every save atomic and statistics that travel together."""
        cls.criteria = kwargs["trainer_options"].best_model_criterion
        with atomic_saves(), averages_at_once():
            super().run(**kwargs)

    @classmethod
    def resume(cls, checkpoint: Path, model: torch.nn.Module, reporter: Reporter, **kwargs: Any) -> None:
        """Loads checkpoint.pth, then restores what a crash between ESPnet's saves may have left out."""
        Trainer.resume(checkpoint=checkpoint, model=model, reporter=reporter, **kwargs)
        if int(os.environ.get("RANK", "0")) != 0:
            return
        epoch = reporter.get_epoch()
        model_file = checkpoint.parent / f"{epoch}epoch.pth"
        if not model_file.exists():
            with atomic_saves():
                torch.save(model.state_dict(), model_file)
        known = [criterion for criterion in cls.criteria if reporter.has(*criterion[:2])]
        best = [f"{phase}.{key}" for phase, key, mode in known if reporter.get_best_epoch(phase, key, mode) == epoch]
        for link in (checkpoint.parent / f"{name}.pth" for name in ("latest", *(f"{name}.best" for name in best))):
            link.unlink(missing_ok=True)
            link.symlink_to(model_file.name)

    @classmethod
    def train_one_epoch(cls, model: Any, iterator: Any, reporter: SubReporter, options: Any, **kwargs: Any) -> bool:
        """One epoch with a progress bar.

        Processes that share memory train as if each were alone and wait for the others only where they learn:
        ESPnet's trainer would wait before a step, for the end of the epoch, and within it, for loss and statistics.
        """
        option, started = kwargs.pop("distributed_option"), time.perf_counter()
        bar = _progress(iterator, f"epoch {reporter.get_epoch()}/{options.max_epoch}", option)
        train = partial(super().train_one_epoch, iterator=bar, reporter=reporter, options=options, **kwargs)
        with shared_training(model, iterator, kwargs["optimizers"], options.grad_clip_type) as shared:
            if shared is None:
                invalid = train(model=model, distributed_option=option)
            else:
                invalid = train(model=shared, distributed_option=dataclasses.replace(option, distributed=False))
                average_epoch(reporter)
        if _is_main(option):
            seconds = round(time.perf_counter() - started, 2)
            _update_history(options.output_dir, reporter, "train", seconds=seconds)
        return invalid

    @classmethod
    def validate_one_epoch(cls, model: Any, iterator: Any, reporter: SubReporter, options: Any, **kwargs: Any) -> None:
        """One validation, then the epoch's line for people."""
        super().validate_one_epoch(model=model, iterator=iterator, reporter=reporter, options=options, **kwargs)
        if _is_main(kwargs["distributed_option"]):
            entry = _update_history(options.output_dir, reporter, "valid")
            print(_summary(entry, options.max_epoch), flush=True)


@contextlib.contextmanager
def atomic_saves() -> Iterator[None]:
    """Within this context torch.save writes beside the target and renames.

    ESPnet's trainer overwrites checkpoint.pth in place: a full disk or a kill in that moment would destroy the only
    state to resume from. Its run method is one piece, so the save it calls is replaced rather than the method copied.
    """
    plain = torch.save

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | os.PathLike):
            plain(obj, f, *args, **kwargs)  # an open file is its owner's business
            return
        target = Path(f)
        part = target.with_name(target.name + ".part")
        try:
            plain(obj, part, *args, **kwargs)
            with part.open("rb") as written:
                os.fsync(written.fileno())
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            free = shutil.disk_usage(target.parent).free // 2**20
            kept = "the previous one is untouched" if target.exists() else "there is no previous one"
            raise OSError(f"cannot write {target} ({free} MiB free on its disk); {kept}: {error}") from error
        part.replace(target)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain


@contextlib.contextmanager
def averages_at_once() -> Iterator[None]:
    """Within this context the processes of ESPnet's trainer exchange the statistics of a step in one message.

    ESPnet sends one per statistic and waits for each, which a small model's step feels.
    """
    plain = espnet_trainer.recursive_average

    def average(stats: dict[str, Tensor], weight: Tensor, distributed: bool = False) -> Averages:
        if not distributed:
            return plain(stats, weight, distributed)
        return average_at_once({name: value.sum() for name, value in stats.items()}, weight.sum())

    espnet_trainer.recursive_average = average
    try:
        yield
    finally:
        espnet_trainer.recursive_average = plain


def average_at_once(stats: dict[str, Tensor], weight: Tensor) -> Averages:
    """Weighted means over processes, as ESPnet's recursive_average: what is NaN in some processes counts in the others.

    Args:
        stats: name -> (...), of one step or of many, the same names in all processes.
        weight: (...).
    """
    own = torch.stack([value * weight for value in stats.values()] + [weight])
    every = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, own)
    table = torch.stack(every)  # (processes, statistics + 1, ...)
    sums = table.nanmean(0) * len(every)  # what is missing is taken to be as in the other processes
    total = table[:, -1].sum(0)
    return dict(zip(stats, sums[:-1] / total, strict=True)), total


def average_epoch(reporter: SubReporter) -> None:
    """The statistics of an epoch in which each process has reported its own become those of all; not its times."""
    own = {name: values for name, values in reporter.stats.items() if isinstance(values[0], WeightedAverage)}
    if not own:
        return
    stats = {name: torch.tensor([each.value for each in values], dtype=torch.float64) for name, values in own.items()}
    weights = torch.tensor([[each.weight for each in values] for values in own.values()], dtype=torch.float64)
    means, weight = average_at_once(stats, weights.amax(0))  # (steps,); what a step did not report weighs nothing
    for name, values in means.items():
        reporter.stats[name] = [WeightedAverage(*each) for each in zip(values.tolist(), weight.tolist(), strict=True)]


def shared_training(
    model: torch.nn.Module, iterator: Any, optimizers: Sequence[torch.optim.Optimizer], norm_type: float
) -> contextlib.AbstractContextManager[SharedModel | None]:
    """Training of an epoch in which processes share memory, if this one is of several that can."""
    together = isinstance(model, DistributedDataParallel) and torch.distributed.get_backend() == "gloo"
    if together and as_many_steps_everywhere(iterator):
        return training_together(model.module, optimizers, norm_type)  # type: ignore[arg-type]
    return contextlib.nullcontext()


def as_many_steps_everywhere(iterator: Any) -> bool:
    """Whether all processes will make equally many steps, as far as can be told."""
    steps = torch.full((2,), len(iterator) if hasattr(iterator, "__len__") else -1)
    steps[1].neg_()
    torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)  # the most, and minus the least
    return bool(steps[0] == -steps[1] >= 0)


def _is_main(distributed_option: Any) -> bool:
    return not distributed_option.distributed or distributed_option.dist_rank == 0


def _progress(iterator: Any, label: str, distributed_option: Any) -> Any:
    """A bar on a terminal; nothing in a log file, where the line per epoch says enough."""
    hide = not (_is_main(distributed_option) and sys.stdout.isatty())
    return tqdm(iterator, desc=label, disable=hide, leave=False, file=sys.stdout, unit="step")


def _means(reporter: SubReporter) -> dict[str, float]:
    return {name: round(float(aggregate(values)), 6) for name, values in reporter.stats.items()}


def _update_history(folder: Any, reporter: SubReporter, phase: str, **extra: float) -> dict[str, Any]:
    """Writes the epoch's means into history.json; an epoch that is repeated after a crash replaces itself."""
    path = Path(folder) / "history.json"
    epoch = reporter.get_epoch()
    history = json.loads(path.read_text()) if path.exists() else []
    kept = [entry for entry in history if entry["epoch"] < epoch]
    current = next((entry for entry in history if entry["epoch"] == epoch and phase != "train"), {"epoch": epoch})
    current = {**current, phase: _means(reporter), **extra}
    part = path.with_suffix(".part")
    part.write_text(json.dumps([*kept, current], indent=1))
    part.replace(path)
    return current


def _summary(entry: dict[str, Any], epochs: int) -> str:
    def show(phase: str) -> str:
        stats = entry[phase]
        return " ".join(f"{name} {stats[name]:.3f}" for name in ("loss", "loss_ctc", "acc") if name in stats)

    return (
        f"epoch {entry['epoch']}/{epochs}  train {show('train')}  valid {show('valid')}  "
        f"{entry.get('seconds', 0.0):.0f} s"
    )
