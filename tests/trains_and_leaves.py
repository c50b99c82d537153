"""``python -m tests.trains_and_leaves OPTIONS``: trains, and fails if threads of the group are left at the end."""

from espnet_bestow.bin.bestow_train import main
from tests.processes import gloo_threads

if __name__ == "__main__":
    main()
    assert gloo_threads() == 0
