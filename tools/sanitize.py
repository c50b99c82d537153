"""Runs the CPU kernels of every instruction set under the address and undefined-behaviour sanitizers."""

import os
import subprocess
from pathlib import Path

from build_ops import COMMON, CSRC, ISAS, ROOT, Step, cpu_steps, cxx, run

FLAGS = ["-O1", "-g", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def main() -> None:
    """Compiles csrc/tests/sanitize_cpu.cpp with the kernels and runs it once per instruction set."""
    compiler = cxx()
    into = ROOT / "build" / "sanitize"
    driver = CSRC / "tests" / "sanitize_cpu.cpp"
    steps = [*cpu_steps(compiler, into, FLAGS, [*ISAS]), Step(into / "driver.o", driver, [*compiler, *COMMON, *FLAGS])]
    run(steps, into)
    program: Path = into / "sanitize_cpu"
    subprocess.run([*compiler, *FLAGS, *(str(step.output) for step in steps), "-o", str(program)], check=True)
    for isa in ISAS:
        subprocess.run([str(program)], check=True, env=os.environ | {"BESTOW_CPU_ISA": isa})


if __name__ == "__main__":
    main()
