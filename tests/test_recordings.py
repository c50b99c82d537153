"""Rows that share a recording are read once, batched together and dealt together."""

import argparse
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
from espnet2.tasks.abs_task import IteratorOptions
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.train.dataset import ESPnetDataset

from espnet_bestow.recordings import RememberedRecordings, costs_of_texts, remember_recordings, share, whole_recordings
from espnet_bestow.task import BestowTask


def recording_of(row: str) -> str:
    return row.split("-")[0]


ROWS = [f"{name}-{task}" for name, tasks in [("a", 3), ("b", 2), ("c", 3), ("d", 1), ("e", 3)] for task in range(tasks)]


def test_batches_are_cut_where_a_recording_ends() -> None:
    batches = whole_recordings(ROWS, 3, recording_of)
    assert [sorted({recording_of(row) for row in batch}) for batch in batches] == [["a"], ["b", "c"], ["d", "e"]]
    assert list(chain(*batches)) == ROWS


@pytest.mark.parametrize("count", range(1, 13))
def test_no_row_is_lost_and_none_is_doubled_however_many_batches(count: int) -> None:
    batches = whole_recordings(ROWS, count, recording_of)
    assert list(chain(*batches)) == ROWS
    assert all(batches)
    assert len(batches) <= count


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_no_batch_is_too_small_for_the_processes(world: int) -> None:
    """Two cuts that move towards each other may leave next to nothing between them."""
    sizes = [6, 3, 2, 2, 6, 3, 6, 6, 3, 1, 3, 1]
    rows = [f"{number}-{task}" for number, size in enumerate(sizes) for task in range(size)]
    for count in range(1, len(rows) // world + 1):
        batches = whole_recordings(rows, count, recording_of, world)
        assert list(chain(*batches)) == rows
        assert min(map(len, batches)) >= world
        assert all(share(batch, rank, world, recording_of) for batch in batches for rank in range(world))


def test_rows_of_equally_long_recordings_are_not_torn_apart() -> None:
    rows = ["a-0", "b-0", "c-0", "a-1", "b-1", "c-1", "d-0", "d-1"]  # as a sort by length leaves them
    batches = whole_recordings(rows, 2, recording_of)
    assert batches == [["a-0", "a-1", "b-0", "b-1"], ["c-0", "c-1", "d-0", "d-1"]]


def test_a_recording_with_more_rows_than_a_batch_is_cut() -> None:
    rows = [f"a-{number}" for number in range(12)]
    assert [len(batch) for batch in whole_recordings(rows, 3, recording_of)] == [4, 4, 4]


def test_rows_of_different_recordings_are_cut_into_equal_numbers() -> None:
    rows = [str(number) for number in range(12)]
    assert [len(batch) for batch in whole_recordings(rows, 4, str)] == [3, 3, 3, 3]


def test_processes_get_whole_recordings_of_about_the_same_cost() -> None:
    shares = [share(ROWS, rank, 2, recording_of) for rank in range(2)]
    # 2 recordings and 6 rows; 3 and 6. Neighbours could at best be dealt as 2 and 5, 3 and 7.
    assert [[row[0] for row in rows] for rows in shares] == [list("aaaeee"), list("bbcccd")]


def test_a_long_answer_counts_for_more_than_a_short_one() -> None:
    rows = ["a-0", "b-0", "c-0", "d-0"]
    costs = {"a-0": 3.0, "b-0": 0.2, "c-0": 0.6, "d-0": 0.2}
    assert share(rows, 0, 2, recording_of, costs.__getitem__) == ["a-0"]
    assert share(rows, 1, 2, recording_of, costs.__getitem__) == ["b-0", "c-0", "d-0"]


@pytest.mark.parametrize("world", range(1, 13))
def test_every_process_gets_something_and_all_is_dealt(world: int) -> None:
    shares = [share(ROWS, rank, world, recording_of) for rank in range(world)]
    assert all(shares)
    assert sorted(chain(*shares)) == sorted(ROWS)
    for rows in shares:
        assert len(list(groupby(rows, recording_of))) == len({*map(recording_of, rows)})


def write_scp(folder: Path, rows: dict[str, int]) -> Path:
    """A wav.scp of rows -> number of their recording, in a folder with text; recording n has 400 n + 400 samples."""
    rng = np.random.default_rng(0)
    for number in set(rows.values()):
        soundfile.write(folder / f"{number}.wav", rng.uniform(-0.5, 0.5, 400 * number + 400), 16000)
    scp = folder / "wav.scp"
    scp.write_text("".join(f"{row} {folder}/{number}.wav\n" for row, number in rows.items()))
    (folder / "text").write_text("".join(f"{row} said {number}\n" for row, number in rows.items()))
    (folder / "shape").write_text("".join(f"{row} {400 * number + 400}\n" for row, number in rows.items()))
    return scp


def test_neighbouring_rows_read_a_recording_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scp = write_scp(tmp_path, {"x-asr": 1, "x-ast": 1, "y-asr": 2})
    plain = ESPnetDataset([(str(scp), "speech", "sound")])
    expected = {row: plain[row][1]["speech"] for row in plain.loader_dict["speech"]}
    dataset = ESPnetDataset([(str(scp), "speech", "sound")])
    of = remember_recordings(dataset)
    assert of("x-asr") == of("x-ast") != of("y-asr")
    opened = []
    plainly = soundfile.SoundFile.__init__
    monkeypatch.setattr(
        soundfile.SoundFile, "__init__", lambda self, file, *a, **k: opened.append(file) or plainly(self, file, *a, **k)
    )
    for row in ["x-asr", "x-ast", "y-asr", "x-ast"]:
        np.testing.assert_array_equal(dataset[row][1]["speech"], expected[row])
    assert [Path(file).stem for file in opened] == ["1", "2", "1"]
    assert isinstance(dataset.loader_dict["speech"], RememberedRecordings)
    assert len(dataset.loader_dict["speech"]) == 3
    assert "y-asr" in dataset.loader_dict["speech"]


def test_costs_are_those_of_instruction_and_answer(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x abcd\ny abcdefgh\n")
    (tmp_path / "prompt").write_text("x ab\ny abcd\n")
    dataset = ESPnetDataset([(str(tmp_path / name), name, "text") for name in ("text", "prompt")])
    cost_of = costs_of_texts(dataset)
    assert [cost_of("x"), cost_of("y")] == pytest.approx([6 / 9, 12 / 9])
    assert costs_of_texts(ESPnetDataset([(str(tmp_path / "prompt"), "prompt", "text")]))("x") == 1.0


def test_audio_that_is_no_file_of_its_own_is_its_own_recording(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x said\n")
    dataset = ESPnetDataset([(str(tmp_path / "text"), "speech", "text")])
    assert remember_recordings(dataset)("x") == "x"


@pytest.mark.parametrize("directions", [("descending", "ascending"), ("descending", "descending")])
def test_the_task_batches_whole_recordings_in_the_order_asked_for(tmp_path: Path, directions: tuple[str, str]) -> None:
    rows = {f"{number}-{task}": number for number in range(9) for task in range(1 + number % 3)}
    scp = write_scp(tmp_path, rows)
    options = IteratorOptions(
        preprocess_fn=None,
        collate_fn=CommonCollateFn(),
        data_path_and_name_and_type=[(str(scp), "speech", "sound"), (str(tmp_path / "text"), "text", "text")],
        shape_files=[str(tmp_path / "shape")],
        batch_size=4,
        batch_bins=0,
        batch_type="sorted",
        max_cache_size=0.0,
        max_cache_fd=0,
        allow_multi_rates=False,
        distributed=False,
        num_batches=None,
        num_iters_per_epoch=None,
        train=True,
    )
    args: argparse.Namespace = BestowTask.get_parser().parse_args(["--output_dir", str(tmp_path)])
    args.sort_in_batch, args.sort_batch = directions
    args.ngpu = 0
    batches = BestowTask.build_sequence_iter_factory(args, options, "train").sampler.batches
    assert sorted(chain(*batches)) == sorted(rows)
    where = {row: index for index, batch in enumerate(batches) for row in batch}
    assert all(len({where[row] for row in rows if rows[row] == number}) == 1 for number in range(9))
    assert all(rows[batch[0]] >= rows[batch[-1]] for batch in batches)
    first, last = rows[batches[0][0]], rows[batches[-1][0]]
    assert (first < last) == (directions[1] == "ascending")
