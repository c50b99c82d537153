import json
from dataclasses import replace

import pytest

from espnet_bestow.evaluate.chunk_log import Chunk, Recording, read_chunk_log, write_chunk_log
from espnet_bestow.evaluate.instances import (
    Instance,
    InstanceLog,
    merge_instances,
    read_instances,
    units_of,
    write_instances,
)

GOOD = Instance(
    index=3,
    prediction="ein alter Mann",
    delays=(320.0, 640.0, 640.0),
    reference="ein alter Mann lacht",
    source_length=2000.0,
    source="/data/utt7.wav",
    elapsed=(330.5, 700.0, 700.0),
    clock=(325.0, 660.0, 660.0),
    compute=25.5,
    extra={"policy": "wait_k", "spans": [[0.0, 0.3], [0.3, 0.5], [0.5, 0.8]]},
)


def test_a_log_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "run" / "instances.log"
    silent = Instance(0, "", (), "ja", 900.0, clock=(), compute=3.0)
    plain = replace(GOOD, index=1, elapsed=(), clock=(), compute=None, source=("/data/utt7.wav", "PCM_16"), extra={})
    write_instances(path, [GOOD, silent, plain])
    assert read_instances(path) == [silent, plain, GOOD]
    assert GOOD.recording == plain.recording == "utt7"


def test_a_log_has_simulevals_keys(tmp_path):
    entry = json.loads(GOOD.to_json())
    assert list(entry)[:8] == [
        *("index", "prediction", "delays", "elapsed", "prediction_length", "reference", "source", "source_length")
    ]
    assert entry["prediction_length"] == 3
    assert json.loads(replace(GOOD, elapsed=()).to_json())["elapsed"] == [325.0, 660.0, 660.0]
    assert Instance.from_json(replace(GOOD, elapsed=()).to_json()).elapsed == ()
    assert "elapsed" not in json.loads(replace(GOOD, elapsed=(), clock=(), compute=None).to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delays": (1.0, 2.0)}, "3 words were written but there are 2 delays"),
        ({"clock": (1.0,)}, "3 words were written but there are 1 clock"),
        ({"delays": (1.0, 3.0, 2.0)}, r"delays go back from 3\.0 to 2\.0"),
        ({"source_length": 0.0}, r"source_length must be positive, got 0\.0"),
    ],
)
def test_wrong_times_name_file_line_and_instance(tmp_path, change, message):
    path = tmp_path / "instances.log"
    write_instances(path, [replace(GOOD, index=1), replace(GOOD, **change)])
    with pytest.raises(ValueError, match=rf"instances\.log:2: instance 3: {message}"):
        read_instances(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected an object"),
        ('{"index": 1}', r"missing \['prediction', 'delays'"),
        (GOOD.to_json().replace("320.0", '"320"'), "delays must be a number, got '320'"),
        (GOOD.to_json().replace("320.0", "NaN"), "delays must be finite, got nan"),
        (GOOD.to_json().replace('"index": 3', '"index": "3"'), "index must be an integer"),
        (GOOD.to_json() + "\n" + GOOD.to_json(), "index 3 appears a second time"),
    ],
)
def test_broken_lines_are_errors(tmp_path, line, message):
    path = tmp_path / "instances.log"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_instances(path)


def test_an_empty_log_is_an_error(tmp_path):
    (tmp_path / "instances.log").touch()
    with pytest.raises(ValueError, match="holds no instance"):
        read_instances(tmp_path / "instances.log")


def test_characters_are_units_where_there_are_no_words(tmp_path):
    path = tmp_path / "instances.log"
    write_instances(path, [Instance(0, "今天好", (1.0, 2.0, 3.0), "今天 很好", 900.0)])
    (instance,) = read_instances(path, "char")
    assert instance.reference_length("char") == 4
    with pytest.raises(ValueError, match="1 words were written but there are 3 delays"):
        read_instances(path)


def test_units():
    assert units_of(" ein  Mann ", "word") == ["ein", "Mann"]
    assert units_of(" ein  Mann ", "char") == list("einMann")
    assert Instance(0, "", (), "", 1.0).reference_length("word") == 1


def test_a_killed_run_goes_on_where_it_was(tmp_path, caplog):
    path = tmp_path / "instances.log"
    with InstanceLog(path) as log:
        log.add(replace(GOOD, index=0))
        log.add(replace(GOOD, index=1))
        assert len(path.read_text().splitlines()) == 2  # on disk before the log is closed
    path.write_text(path.read_text() + GOOD.to_json()[:40])
    with InstanceLog(path) as log:
        assert sorted(log.done) == [0, 1]
        assert "half-written line of 40 bytes" in caplog.text
        with pytest.raises(ValueError, match="index 1 is already in the log"):
            log.add(replace(GOOD, index=1))
        log.add(GOOD)
    assert [i.index for i in read_instances(path)] == [0, 1, 3]


def test_logs_of_jobs_are_merged_in_order(tmp_path):
    a, b = tmp_path / "a.log", tmp_path / "b.log"
    write_instances(a, [replace(GOOD, index=2), replace(GOOD, index=0)])
    write_instances(b, [replace(GOOD, index=1)])
    assert [i.index for i in merge_instances([a, b])] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"a\.log.*index 0 appears a second time"):
        merge_instances([a, a])


def chunks(*rows):
    return tuple(Chunk(received, compute, tuple(w.split()), tuple(d.split())) for received, compute, w, d in rows)


def test_chunk_logs_come_back_and_give_instances(tmp_path):
    talk = Recording("talk.wav", chunks((0.5, 0.1, "", ""), (1.0, 0.9, "ein", ""), (1.5, 0.1, "alter Mann", "")))
    other = Recording("other.wav", chunks((0.5, 0.0, "", "")))
    write_chunk_log(tmp_path / "log.jsonl", [talk, other])
    first, second = read_chunk_log(tmp_path / "log.jsonl")
    assert (first, second) == (talk, other)
    instance = first.instance(4, "ein alter Mann")
    assert instance.prediction == "ein alter Mann"
    assert instance.delays == (1000, 1500, 1500)
    assert instance.clock == pytest.approx((1900, 2000, 2000))
    assert instance.compute == pytest.approx(1100)
    assert instance.source_length == 1500
    assert instance.recording == "talk"
    assert second.instance(5, "ja").delays == ()


def test_a_unit_written_again_has_its_last_time():
    talk = Recording("x", chunks((1.0, 0.0, "ein alt Mann", ""), (2.0, 0.0, "alter Mann", "alt Mann")))
    instance = talk.instance(0, "ein alter Mann")
    assert (instance.prediction, instance.delays) == ("ein alter Mann", (1000, 2000, 2000))
    same = Recording("x", chunks((1.0, 0.0, "ein Mann", ""), (2.0, 0.0, "Mann", "Mann")))
    assert same.instance(0, "ein Mann").delays == (1000, 2000)


def test_a_word_is_written_when_its_last_piece_is():
    talk = Recording("x", chunks((1.0, 0.0, "▁ein ▁al", ""), (2.0, 0.0, "ter ▁Mann", "")))
    instance = talk.instance(0, "ein alter Mann", join="spm")
    assert (instance.prediction, instance.delays) == ("ein alter Mann", (1000, 2000, 2000))


def test_deleting_what_was_not_written_is_an_error():
    talk = Recording("x", chunks((1.0, 0.0, "ein Mann", ""), (2.0, 0.0, "", "Frau")))
    with pytest.raises(ValueError, match=r"recording 'x', chunk 1: deletes \['Frau'\] but \['Mann'\]"):
        talk.instance(0, "ein Mann")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 0, "total_audio_processed": 1}'], "has no metadata"),
        (['{"model_loading_time": 1.5}'], "holds no recording"),
        (['{"id": 0, "metadata": {}}'], "wav_name"),
        (['{"id": 0, "metadata": {"wav_name": "x"}}'] * 2, "begins a second time"),
        (['{"id": 0, "metadata": {"wav_name": "x"}}', '{"id": 0, "total_audio_processed": 1}'], "computation_time"),
    ],
)
def test_broken_chunk_logs_are_errors(tmp_path, lines, message):
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_chunk_log(tmp_path / "log.jsonl")
