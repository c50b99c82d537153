"""Our own simulator and the curves made of its logs."""

import json
import shutil
from pathlib import Path

import pytest

from espnet_bestow import cli
from espnet_bestow.bin import bestow_curve, bestow_simulate, merge_instances
from espnet_bestow.datadir.directory import read_table, write_table
from espnet_bestow.evaluate.chunk_log import read_chunk_log
from espnet_bestow.evaluate.curves import read_points
from espnet_bestow.evaluate.instances import read_instances
from espnet_bestow.evaluate.latency import paper_delays
from tests.simul.scripted import SENTENCE, write_scripted

TASK = "asr_en"


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings, one task, every reference what the model says."""
    folder = tmp_path_factory.mktemp("data")
    keys = sorted({file: key for key, file in read_table(tiny.data["train"] / "wav.scp").items()}.values())[:4]
    for name in ("wav.scp", "utt2spk", "prompt"):
        table = read_table(tiny.data["train"] / name)
        write_table(folder / name, {key: table[key] for key in keys})
    write_table(folder / "text", dict.fromkeys(keys, SENTENCE))
    write_table(folder / "utt2task", dict.fromkeys(keys, TASK))
    return folder


@pytest.fixture(scope="module")
def model(tiny, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted(tiny_experiment, tiny.llm, tmp_path_factory.mktemp("scripted"))


def run(data: Path, model: Path, out: Path, *options: str) -> None:
    words = ["--model", str(model), "--data_dir", str(data), "--output_dir", str(out), "--log_level", "error"]
    policies = () if "--policies" in options else ("--policies", "wait_k:k=2,step=1")
    bestow_simulate.main([*words, *policies, *options])


@pytest.fixture(scope="module")
def simulated(data, model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    run(data, model, out, "--policies", "wait_k:k=2/6,step=1", "offline")
    return out


def log_of(out: Path, policy: str = "wait_k_k2_step1") -> Path:
    return out / policy / TASK / "instances.log"


def test_every_row_is_logged_with_exact_times(data, simulated):
    instances = read_instances(log_of(simulated))
    assert [i.extra["key"] for i in instances] == sorted(read_table(data / "wav.scp"))
    for index, instance in enumerate(instances):
        assert (instance.index, instance.prediction, instance.reference) == (index, SENTENCE, SENTENCE)
        assert instance.delays[0] < instance.delays[-1] == pytest.approx(instance.source_length)
        assert all(delay % 320 == pytest.approx(0) for delay in instance.delays if delay < instance.source_length)
        # Nothing is written before its audio is there, nor before it was computed.
        assert all(clock > delay for clock, delay in zip(instance.clock, instance.delays, strict=True))
        assert instance.compute == pytest.approx(1000 * sum(chunk[1] for chunk in instance.extra["chunks"]))
        assert instance.extra["policy"] == "wait_k:k=2,step=1"
        for word, delay in zip(instance.extra["words"], instance.delays, strict=True):
            # What the model had consumed may be less than what was sent, never more.
            assert 0 < word["seen"] <= delay / 1000 + 1e-9
            assert word["span"][0] <= word["span"][1] <= word["seen"]


def test_offline_writes_everything_at_the_end(simulated):
    for instance in read_instances(log_of(simulated, "offline")):
        assert set(instance.delays) == {instance.source_length}


def test_a_chunk_log_of_the_same_times_lies_beside(simulated):
    recordings = read_chunk_log(log_of(simulated).with_name("simulstream.jsonl"))
    instances = {instance.source: instance for instance in read_instances(log_of(simulated))}
    for index, recording in enumerate(recordings):
        instance = instances[recording.name]
        again = recording.instance(index, SENTENCE)
        assert (again.prediction, again.delays, again.clock) == (instance.prediction, instance.delays, instance.clock)


def test_a_killed_run_goes_on_without_doing_anything_twice(data, model, simulated, tmp_path):
    log = log_of(tmp_path)
    log.parent.mkdir(parents=True)
    lines = log_of(simulated).read_text().splitlines(keepends=True)
    log.write_text(lines[1] + lines[0] + lines[2][:40])
    run(data, model, tmp_path)
    resumed = log.read_text().splitlines(keepends=True)
    assert resumed[:2] == [lines[1], lines[0]] and len(resumed) == 4
    assert [i.delays for i in read_instances(log)] == [i.delays for i in read_instances(log_of(simulated))]
    before = log.read_bytes()
    run(data, model, tmp_path)
    assert log.read_bytes() == before


def test_jobs_and_subsets_keep_the_numbers_of_the_whole(data, model, simulated, tmp_path):
    keys = sorted(read_table(data / "wav.scp"))
    (tmp_path / "keys").write_text("".join(f"{key} x\n" for key in (keys[1], keys[3])))
    run(data, model, tmp_path / "part", "--key_file", str(tmp_path / "keys"))
    assert [(i.index, i.extra["key"]) for i in read_instances(log_of(tmp_path / "part"))] == [
        (1, keys[1]),
        (3, keys[3]),
    ]
    run(data, model, tmp_path / "half", "--max_rows", "2")
    assert [i.index for i in read_instances(log_of(tmp_path / "half"))] == [0, 2]


def test_sessions_together_say_the_same_at_the_same_time_without_a_clock(data, model, simulated, tmp_path):
    run(data, model, tmp_path, "--sessions", "3")
    alone, together = (read_instances(log_of(out)) for out in (simulated, tmp_path))
    assert [(i.index, i.prediction, i.delays) for i in together] == [(i.index, i.prediction, i.delays) for i in alone]
    assert all(i.clock == i.elapsed == () and i.compute is None for i in together)


def test_the_papers_delays_only_where_its_frames_are_ours(simulated, model):
    # The tiny encoder has frames of 40 ms.
    assert "paper_delays" not in read_instances(log_of(simulated))[0].extra
    assert paper_delays([1, 2], 10_000, 2, 1) == [1200, 1280, 1440]


def test_merged_logs_of_jobs_are_those_of_one(simulated, tmp_path):
    for job in range(2):
        for name, lines in (
            (file, file.read_text().splitlines(keepends=True)) for file in simulated.rglob("instances.log")
        ):
            part = tmp_path / f"job{job}" / name.relative_to(simulated)
            part.parent.mkdir(parents=True)
            part.write_text("".join(lines[job::2]))
    merge_instances.main(
        ["--inputs", *(str(tmp_path / f"job{job}") for job in range(2)), "--output_dir", str(tmp_path)]
    )
    for name in ("instances.log", "simulstream.jsonl"):
        merged, whole = (log_of(folder).with_name(name).read_text() for folder in (tmp_path, simulated))
        assert merged == whole, name


def test_points_of_a_curve(simulated, tmp_path):
    options = ["--logs", f"ours={simulated}", "--test_set", "tones", "--output_dir", str(tmp_path)]
    bestow_curve.main([*options, "--command_line", "make demo"])
    points = {(p.policy, p.options.get("k"), p.metric): p for p in read_points(tmp_path / "curves.json")}
    assert set(points) == {("wait_k", 2, "wer"), ("wait_k", 6, "wer"), ("offline", None, "wer")}
    two, six, offline = points["wait_k", 2, "wer"], points["wait_k", 6, "wer"], points["offline", None, "wer"]
    assert (two.system, two.test_set, two.swept, two.value, two.n) == ("ours", "tones", "k", 0.0, 4)
    assert offline.swept == "" and two.command == "make demo"
    assert two.latency["laal"] < six.latency["laal"] < offline.latency["laal"]
    assert two.latency["laal"] < two.latency["laal_ca"]
    assert (tmp_path / "wer_laal.png").stat().st_size > 5000
    assert "![wer_laal](wer_laal.png)" in (tmp_path / "CURVES.md").read_text()


def test_a_curve_from_a_model_in_one_command(data, model, tmp_path, capsys):
    words = ["--model", str(model), "--data_dir", str(data), "--policies", "wait_k:k=2/4,step=1", "--max_rows", "1"]
    bestow_curve.main([*words, "--output_dir", str(tmp_path), "--system", "ours"])
    assert "2 points of ours" in capsys.readouterr().out
    assert len(read_points(tmp_path / "curves.json")) == 2


def test_a_sweep_beside_the_policy_as_it_is(data, model, tmp_path):
    run(data, model, tmp_path / "logs", "--policies", "wait_k", "wait_k:k=2/4", "--max_rows", "1")
    for _ in range(2):  # the file that it writes can be read again
        bestow_curve.main(["--logs", f"ours={tmp_path / 'logs'}", "--output_dir", str(tmp_path)])
    points = read_points(tmp_path / "curves.json")
    assert sorted((point.swept, point.position or 0) for point in points) == [("", 0), ("k", 2), ("k", 4)]
    with pytest.raises(SystemExit, match="are both named 'logs': say --logs <system>=<dir>"):
        bestow_curve.main(["--logs", *[str(tmp_path / "logs")] * 2, "--output_dir", str(tmp_path)])


def test_other_data_or_another_model_is_not_taken_for_what_was_done(data, model, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    table = read_table(other / "text")
    write_table(other / "text", dict.fromkeys(table, "etwas anderes"))
    out = tmp_path / "out"
    run(data, model, out)
    with pytest.raises(SystemExit, match=r"index 0 is .* or not with its reference: the log of other data"):
        run(other, model, out)
    with pytest.raises(SystemExit, match=r"was made with segment_ms 320 \(now 640\)"):
        run(data, model, out, "--segment_ms", "640")
    again = shutil.copytree(model, tmp_path / "model")
    (again / "latest.pth").touch()
    with pytest.raises(SystemExit, match=r"was made with checkpoint '\d+ bytes of"):
        run(data, again, out)
    run(data, model, out)
    words = ["--model", str(model), "--policies", "wait_k:k=2,step=1", "--output_dir", str(tmp_path / "curves")]
    for name, folder in (("one", data), ("two", other)):
        bestow_curve.main([*words, "--data_dir", str(folder), "--test_set", name])
    one, two = read_points(tmp_path / "curves" / "curves.json")
    assert (one.test_set, one.value, two.test_set) == ("one", 0.0, "two") and two.value > 50


def test_rows_about_one_recording_have_names_of_their_own(data, model, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    table = read_table(folder / "wav.scp")
    keys = sorted(table)
    write_table(folder / "wav.scp", {**table, keys[1]: table[keys[0]]})
    run(folder, model, tmp_path / "out")
    names = [recording.name for recording in read_chunk_log(log_of(tmp_path / "out").with_name("simulstream.jsonl"))]
    assert names == [keys[0], keys[1], table[keys[2]], table[keys[3]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "wait_k:k=2,step=1", "align_att:treshold=4"], r"wrong options \['treshold'\]"),
        (["--policies", "wait_k:k=0"], "error: wait_k: k=0 must be a whole number >= 1"),
        (["--policies", "align"], "error: policy='align' is not known"),
        (["--tasks", "sqa"], "error: .*no row has a task of sqa; there are asr_en"),
        (["--context", "70,6"], r"error: context=\(70, 6\): TransformerEncoder is not cache-aware"),
    ],
)
def test_bad_options_are_one_line(data, model, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(data, model, tmp_path, *options)


def test_bad_audio_names_its_row_and_keeps_what_was_done(data, model, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    table = read_table(folder / "wav.scp")
    keys = sorted(table)
    write_table(folder / "wav.scp", {**table, keys[2]: "no/such.flac"})
    with pytest.raises(SystemExit, match=f"error: utterance '{keys[2]}': no/such.flac: missing file"):
        run(folder, model, tmp_path / "out")
    assert len(read_instances(log_of(tmp_path / "out"))) == 2


def test_curves_of_nothing(simulated, tmp_path):
    for options, message in (
        ([], "there is nothing to draw"),
        (["--logs", str(tmp_path)], "no <policy>/<task>/instances.log in it"),
        (["--model", "exp/x", "--policies", "offline"], "--model exp/x needs --data_dir and --policies"),
    ):
        with pytest.raises(SystemExit, match=message):
            bestow_curve.main(["--output_dir", str(tmp_path / "out"), *options])
    log = tmp_path / "p" / TASK / "instances.log"
    log.parent.mkdir(parents=True)
    line = json.loads(log_of(simulated).read_text().splitlines()[0])
    del line["policy"]
    log.write_text(json.dumps(line) + "\n")
    with pytest.raises(SystemExit, match="instance 0: no policy in the log"):
        bestow_curve.main(["--output_dir", str(tmp_path / "out"), "--logs", str(tmp_path)])


def test_bestow_curve_is_the_same_command(simulated, tmp_path, capsys):
    assert cli.main(["curve", "--logs", f"ours={simulated}", "--output_dir", str(tmp_path)]) == 0
    assert "3 points of ours" in capsys.readouterr().out
    assert read_points(tmp_path / "curves.json")[0].system == "ours"
    assert cli.main(["curve", "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "bestow: there is nothing to draw: give --logs, or a --model\n"
    with pytest.raises(SystemExit):
        cli.main(["transcribe", "a.wav", "--model", "m", "--bim_size", "3"])
    assert "unrecognized arguments: --bim_size 3" in capsys.readouterr().err
