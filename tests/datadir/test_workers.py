import os

import pytest

from espnet_bestow.datadir import map_in_processes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@pytest.mark.parametrize("nj", [1, 3])
def test_order_is_kept(nj):
    results = list(map_in_processes(square, range(50), nj, "square"))
    assert [value for value, _ in results] == [n * n for n in range(50)]
    assert (os.getpid() in {pid for _, pid in results}) == (nj == 1)


def test_nothing_to_do():
    assert list(map_in_processes(square, [], 4, "square")) == []


def test_number_of_processes_must_make_sense():
    with pytest.raises(ValueError, match="nj must be at least 1, got 0"):
        list(map_in_processes(square, [1], 0, "square"))
