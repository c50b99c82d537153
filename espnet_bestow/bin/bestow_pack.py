"""Pack a model: ``python -m espnet_bestow.bin.bestow_pack --exp D --outpath model.zip``."""

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet2.main_funcs.pack_funcs import pack

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.model_dir import CHECKPOINT_KEY, CONFIG_KEY, META
from espnet_bestow.packing import PackingError, Trained, write_model_dir


def pack_model(trained: Trained, outpath: Path) -> None:
    """Writes the zip, which holds everything but LLMs named by hub id."""
    if outpath.suffix != ".zip":
        raise PackingError(f"--outpath {str(outpath)!r} must end in .zip")
    outpath.parent.mkdir(parents=True, exist_ok=True)
    target = outpath.resolve()
    part = target.with_suffix(".part.zip")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pack.") as name:
        folder = Path(name)
        write_model_dir(trained, folder)
        main = {CONFIG_KEY: "config.yaml", CHECKPOINT_KEY: trained.model_file.name}
        files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
        rest = [file for file in files if file not in {META, *main.values()}]
        # ESPnet packs paths relative to the working directory only.
        with contextlib.chdir(folder):
            pack(
                files={CHECKPOINT_KEY: main[CHECKPOINT_KEY]},
                yaml_files={CONFIG_KEY: main[CONFIG_KEY]},
                outpath=part,
                option=rest,
            )
    part.replace(target)


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 14."""
    parser = argparse.ArgumentParser(
        description="Pack a trained model into a zip for Speech2Text.from_pretrained.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--exp", type=Path, required=True, help="Directory of the training")
    parser.add_argument("--outpath", type=Path, required=True, help="Zip to write")
    parser.add_argument("--model_file", help="Checkpoint in --exp; default: the best one")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        pack_model(Trained.find(args.exp, args.model_file), args.outpath)


if __name__ == "__main__":
    main()
