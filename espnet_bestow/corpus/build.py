"""Builds the corpus: plans it, lets worker processes speak it, and writes the data directories."""

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from tqdm import tqdm

from espnet_bestow.corpus.espeak import require_espeak
from espnet_bestow.corpus.kaldi import Row, write_data_dir, write_manifest
from espnet_bestow.corpus.lm_text import lm_lines
from espnet_bestow.corpus.marker import Identity, claim, finish, is_finished
from espnet_bestow.corpus.plan import SentencePool, Utterance, plan_split, split_commands
from espnet_bestow.corpus.rendering import Renderer
from espnet_bestow.corpus.speak import Recording, record_utterance
from espnet_bestow.corpus.tiers import Tier

RENDERERS = {
    "espeak": "espnet_bestow.corpus.espeak",
    "tone": "espnet_bestow.corpus.tone",
}
_BATCH = 16
_LM_VALID_SHARE = 0.02


@dataclass(frozen=True)
class Order:
    """What to build and how."""

    output_dir: Path
    tier: Tier
    seed: int = 0
    renderer: str = "espeak"
    workers: int = 2
    overwrite: bool = False

    @property
    def identity(self) -> Identity:
        """What the finished corpus is; a rebuild of the same identity gives the same bytes."""
        return Identity(tier=self.tier.name, seed=self.seed, renderer=self.renderer)


def audio_path(output_dir: Path, utterance: Utterance) -> Path:
    """Where the audio of `utterance` lies; relative if the output directory is."""
    return output_dir / "audio" / utterance.split / f"{utterance.id}.wav"


def load_renderer(name: str) -> Renderer:
    """Return the renderer called `name`."""
    if name not in RENDERERS:
        raise ValueError(f"renderer {name!r} is not one of {sorted(RENDERERS)}")
    renderer: Renderer = importlib.import_module(RENDERERS[name]).render
    return renderer


def _record(renderer: str, output_dir: Path, utterance: Utterance) -> Recording:
    return record_utterance(utterance, load_renderer(renderer), audio_path(output_dir, utterance))


@contextmanager
def _mapping(order: Order) -> Iterator[Callable[..., Iterator[Recording]]]:
    """Yield a `map` that spreads the work over processes."""
    if order.renderer == "tone" and order.workers == 1:  # loads no library: may run right here
        yield map
        return
    # Spawned, not forked: the caller may have threads (torch) that a fork would break. And an
    # executor, not a Pool: it notices when the library takes its process down.
    executor = ProcessPoolExecutor(order.workers, mp_context=get_context("spawn"))
    try:
        yield partial(executor.map, chunksize=_BATCH)
    finally:
        executor.shutdown(cancel_futures=True)


def _record_all(order: Order, utterances: list[Utterance]) -> dict[str, Recording]:
    record = partial(_record, order.renderer, order.output_dir)
    with _mapping(order) as spread:
        progress = tqdm(
            spread(record, utterances),
            total=len(utterances),
            desc="speak",
            unit="utt",
            leave=False,
        )
        return {recording.utterance_id: recording for recording in progress}


def _write_split(order: Order, split: str, utterances: list[Utterance], recordings: dict[str, Recording]) -> None:
    directory = order.output_dir / split
    rows = [
        Row(utterance, recordings[utterance.id], example, audio_path(order.output_dir, utterance))
        for utterance in utterances
        for example in utterance.examples
    ]
    write_data_dir(directory, rows)
    write_manifest(directory / "manifest.jsonl", utterances, recordings)


def _write_lm_text(order: Order, pool: SentencePool) -> None:
    directory = order.output_dir / "lm"
    directory.mkdir(parents=True, exist_ok=True)
    commands, _ = split_commands(order.seed)
    valid = max(1, round(order.tier.lm_lines * _LM_VALID_SHARE))
    for name, count in (("train", order.tier.lm_lines), ("valid", valid)):
        rng = Random(f"{order.seed}/lm/{name}")
        text = "".join(f"{line}\n" for line in lm_lines(rng, count, pool, commands))
        (directory / f"{name}.txt").write_text(text, encoding="utf-8")


def build_corpus(order: Order) -> bool:
    """Build the corpus; returns False at once if it is there already."""
    if order.renderer not in RENDERERS:
        raise ValueError(f"renderer {order.renderer!r} is not one of {sorted(RENDERERS)}")
    if order.renderer == "espeak":
        require_espeak()
    if is_finished(order.output_dir, order.identity, order.overwrite):
        return False
    claim(order.output_dir, order.identity, order.overwrite)
    pool = SentencePool()
    splits = {split: list(plan_split(split, order.tier, order.seed, pool)) for split in order.tier.utterances}
    for split in splits:
        (order.output_dir / "audio" / split).mkdir(parents=True, exist_ok=True)
    recordings = _record_all(order, [u for utterances in splits.values() for u in utterances])
    for split, utterances in splits.items():
        _write_split(order, split, utterances, recordings)
    _write_lm_text(order, pool)
    finish(order.output_dir, order.identity)
    return True
