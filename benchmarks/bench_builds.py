"""The attention kernels of two commits beside each other: what did a change to csrc/ bring on this CPU?

    python benchmarks/bench_builds.py HEAD~5 HEAD --threads 2

Both are compiled for one instruction set, without torch, and take turns; a ratio is the median over rounds of (time of
the first / time of the second). Shapes are those of bench_staircase.py. Uncommitted changes have no name: commit first.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
from io import BytesIO
from itertools import product
from pathlib import Path

from espnet_bestow.ops import built

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from build_ops import COMMON, ISAS, PLAIN, Step, cxx, run  # noqa: E402

WHAT = {"forward": ("forward", 128), "backward": ("backward", 128), "one query": ("forward", 1)}


def build(commit: str, isa: str, into: Path) -> Path:
    """The program csrc/tests/time_cpu.cpp with the kernels of a commit."""
    name = subprocess.run(
        ["git", "rev-parse", "--short", commit], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = into / f"{name}_{isa}"
    archive = subprocess.run(["git", "archive", commit, "csrc"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    compiler = cxx()
    # With its headers, not with those of the working tree.
    common = [flag for flag in COMMON if not flag.startswith("-I")]
    flags = [*common, *ISAS[isa], f"-DBESTOW_ISA={isa}", f"-I{folder / 'csrc' / 'include'}"]
    sources = [path for path in (folder / "csrc" / "cpu").glob("*.cpp") if path.stem not in PLAIN]
    sources.append(ROOT / "csrc" / "tests" / "time_cpu.cpp")
    steps = [Step(folder / f"{source.stem}.o", source, [*compiler, *flags]) for source in sources]
    run(steps, folder, sys.stderr)  # the table has standard output for itself
    program = folder / "time_cpu"
    subprocess.run([*compiler, *(str(step.output) for step in steps), "-pthread", "-o", str(program)], check=True)
    return program


def milliseconds(program: Path, *words: object) -> float:
    """What one run of the program says."""
    return float(subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2)
    parser.add_argument("--isa", choices=ISAS, help="default: what runs here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of both programs in turn")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--dtypes", nargs="+", choices=("float", "bfloat16"), default=["float", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    args = parser.parse_args()
    isa = args.isa or built().cpu_isa()
    programs = [build(commit, isa, ROOT / "build" / "bench_builds") for commit in args.commits]
    print(f"{'what':10} dtype      B    D {args.commits[0]:>10} {args.commits[1]:>10}   ratio", flush=True)
    for what, dtype, batch, width in product(args.what, args.dtypes, args.batches, args.widths):
        kernel, rows = WHAT[what]
        words = kernel, rows, dtype, batch, width, args.threads, 11
        spent = [[milliseconds(program, *words) for program in programs] for _ in range(args.rounds)]
        first, second = (statistics.median(column) for column in zip(*spent, strict=True))
        ratio = statistics.median(a / b for a, b in spent)
        print(f"{what:10} {dtype:8} {batch:3} {width:4} {first:10.3f} {second:10.3f} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
