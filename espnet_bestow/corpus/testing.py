"""A corpus of a few seconds, made in a fraction of one, for tests of everything that needs data."""

from pathlib import Path

from espnet_bestow.corpus.build import Order, build_corpus
from espnet_bestow.corpus.tiers import Conditions, Tier

# Tones need no breath: three times the usual rate makes clips of about a second.
_RATES = (480, 540)
_LM_LINES = 50


def write_tone_corpus(output_dir: str | Path, utterances: int = 12, seed: int = 0) -> dict[str, Path]:
    """Write `utterances` tone utterances of about a second for training, a third for validation.

    Returns:
        The data directories by split: "train" and "valid".
    """
    conditions = {"train": Conditions(), "valid": Conditions()}
    sizes = {"train": utterances, "valid": max(1, utterances // 3)}
    tier = Tier(f"tone_test_{utterances}", sizes, _LM_LINES, _RATES, conditions)
    directory = Path(output_dir)
    build_corpus(Order(directory, tier, seed=seed, renderer="tone", workers=1))
    return {split: directory / split for split in sizes}
