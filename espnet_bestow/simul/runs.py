"""What a folder of logs is made with, so that a run that goes on where it was killed never mixes two."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

RUN = "run.json"


def fingerprint(checkpoint: Path) -> str:
    """Tells a checkpoint from what is trained into its place later."""
    stat = checkpoint.stat()
    return f"{stat.st_size} bytes of {datetime.fromtimestamp(stat.st_mtime, UTC).isoformat()}"


def claim(folder: Path, made_with: Mapping[str, str | int | None]) -> None:
    """Notes in ``folder`` what is about to be made there.

    Raises:
        ValueError: It holds what was made with something else.
    """
    path = folder / RUN
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_with, indent=1) + "\n", "utf-8")
        return
    before = json.loads(path.read_text("utf-8"))
    if other := [name for name, value in made_with.items() if before.get(name) != value]:
        found = ", ".join(f"{name} {before.get(name)!r} (now {made_with[name]!r})" for name in other)
        raise ValueError(f"{folder} was made with {found}: remove it, or name another output_dir")
