import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from espnet_bestow.evaluate.results import (
    Origin,
    ResultRow,
    add_results,
    merge_rows,
    read_results,
    write_results,
    write_text_atomically,
)
from espnet_bestow.evaluate.tally import Score

ROW = ResultRow("bestow", "asr_en", "test", "wer", 3.25, 400, 2.5, 4.0, "score.sh", "norm:x")


def test_round_trip_and_file_layout(tmp_path):
    path = tmp_path / "new" / "results.json"
    plain = replace(ROW, metric="cer", signature="")
    write_results(path, [ROW, plain])
    assert read_results(path) == [ROW, plain]
    entries = json.loads(path.read_text())
    keys = ["system", "task", "test_set", "metric", "value", "n", "low", "high", "command"]
    assert list(entries[0]) == [*keys, "signature"]
    assert list(entries[1]) == keys


def test_missing_file_holds_no_rows(tmp_path):
    assert read_results(tmp_path / "results.json") == []


def test_merge_replaces_same_key_in_place_and_keeps_the_rest():
    other = [replace(ROW, **{k: "other"}) for k in ("system", "task", "test_set", "metric")]
    again = replace(ROW, value=1.0, command="again")
    new = replace(ROW, task="asr_de")
    assert merge_rows([ROW, *other], [new, again]) == [again, *other, new]


def test_origin_rounds_to_four_decimals():
    row = Origin("bestow", "test", "cmd").row("sqa", Score("rouge_l", 1 / 3, 7, 0.1, 0.55557))
    assert row == ResultRow("bestow", "sqa", "test", "rouge_l", 0.3333, 7, 0.1, 0.5556, "cmd")


def _add(path, worker: int) -> None:
    for i in range(5):
        add_results(path, [replace(ROW, test_set=f"{worker}-{i}")])


def test_parallel_scoring_runs_lose_no_row(tmp_path):
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda worker: _add(path, worker), range(4)))
    expected = {f"{w}-{i}" for w in range(4) for i in range(5)}
    assert {row.test_set for row in read_results(path)} == expected


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [ROW])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(path, [replace(ROW, value=float("nan"))])
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "half\ud800")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("{}", "expected a list of results, got dict"),
        ("[3]", "entry 0: expected an object, got 3"),
        ('[{"system": "a"}]', r"entry 0: missing \['task', 'test_set'"),
    ],
)
def test_broken_files_name_file_and_value(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"results.json: {message}"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valeu": 1}, "unknown keys .*valeu.*known: .*system"),
        ({"value": "12"}, "value must be int, got '12'"),
        ({"n": 1.5}, "n must be int, got 1.5"),
        ({"n": True}, "n must be int, got True"),
        ({"task": None}, "task must be str, got None"),
    ],
)
def test_broken_entries_name_key_and_value(tmp_path, change, message):
    path = tmp_path / "results.json"
    write_results(path, [ROW])
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=message):
        read_results(path)
