"""Compares the compiled ops with their twin: ``python -m tests.ops.fuzz [problems] [first seed]``."""

import sys

from tests.ops.staircase_cases import complaints, few_rows, random_case, weights_complaints


def main(cases: int = 10_000, first: int = 1_000_000) -> int:
    failed = 0
    for seed in range(first, first + cases):
        if found := complaints(random_case(seed)) + weights_complaints(few_rows(seed)):
            failed += 1
            print(f"seed {seed}: {found}: {random_case(seed)}", flush=True)
    print(f"{cases} random problems, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
