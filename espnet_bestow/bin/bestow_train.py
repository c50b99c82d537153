"""Train a BESTOW model: ``python -m espnet_bestow.bin.bestow_train --config conf/train.yaml ...``."""

from collections.abc import Sequence
from typing import Any

from espnet_bestow.task import BestowTask


def get_parser() -> Any:
    """ESPnet's parser with every option of BestowTask."""
    return BestowTask.get_parser()


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    BestowTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
