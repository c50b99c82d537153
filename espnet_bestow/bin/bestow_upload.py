"""Upload a model: ``python -m espnet_bestow.bin.bestow_upload --packed Z --hf_repo me/name``."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, true_or_false
from espnet_bestow.model_dir import read_config, read_meta, unpack

_CARD = """---
library_name: espnet
tags:
- espnet
- espnet_bestow
- speech-llm
---

# {repo}

A BESTOW speech LLM, trained with espnet_bestow: encoder `{encoder}`, connector `{connector}`,
policy `{policy}`.

```python
from espnet_bestow import Speech2Text

s2t = Speech2Text.from_pretrained("{repo}")
text, tokens, score = s2t("talk.flac", prompt="{prompt}")
```
"""


class UploadError(ValueError):
    """An upload that cannot be done; says why."""


def repository(text: str) -> str:
    """A hub repository, ``owner/name``."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a repository ({error})") from error
    if text.count("/") != 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form owner/name")
    return text


def prepare(packed: Path, repo: str, folder: Path, results: Path | None = None) -> None:
    """Fills ``folder`` with what the repository is to hold: the unpacked model and a model card."""
    if not packed.is_file():
        raise UploadError(f"{packed}: no such file; run stage 14")
    source = unpack(packed)
    config = read_config(read_meta(source)[0])
    shutil.copytree(source, folder, dirs_exist_ok=True)
    card = _CARD.format(
        repo=repo,
        encoder=config["encoder"],
        connector=config["connector"],
        policy=config["policy"],
        prompt=config["default_prompt"],
    )
    if results is not None:
        card += f"\n## Results\n\n{results.read_text('utf-8')}"
    (folder / "README.md").write_text(card, "utf-8")


def upload(folder: Path, repo: str, private: bool) -> str:
    """Creates the repository where needed and uploads ``folder``; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder).commit_url)
    except Exception as error:  # the hub client raises its own, httpx's and huggingface's errors
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UploadError(
            f"cannot upload to {repo!r} ({type(error).__name__}: {reason}); "
            "is there network, and are you logged in (`hf auth login`)?"
        ) from error


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 15."""
    parser = argparse.ArgumentParser(
        description="Upload a packed model to the Hugging Face hub, with a model card.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--packed", type=Path, required=True, help="Zip that stage 14 wrote")
    parser.add_argument("--hf_repo", type=repository, required=True, help="owner/name on the hub")
    parser.add_argument("--results", type=Path, help="Markdown tables for the card: RESULTS.md")
    parser.add_argument("--private", type=true_or_false, default=False, help="A private repository")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line(), tempfile.TemporaryDirectory() as folder:
        prepare(args.packed, args.hf_repo, Path(folder), args.results)
        print(upload(Path(folder), args.hf_repo, args.private), file=sys.stderr)


if __name__ == "__main__":
    main()
