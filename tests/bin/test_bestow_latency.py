import json
from dataclasses import replace

import pytest

from espnet_bestow.bin.bestow_latency import main
from espnet_bestow.evaluate.chunk_log import Chunk, Recording, write_chunk_log
from espnet_bestow.evaluate.instances import Instance, read_instances, write_instances
from espnet_bestow.evaluate.latency import laal

ONE = Instance(0, "der alte", (600.0, 1200.0), "der alte", 1500.0, "/x/a.wav", clock=(650.0, 1300.0), compute=100.0)
TWO = replace(ONE, index=1, prediction="der neue", source="/x/b.wav", extra={"key": "spk-b-asr_en"})


@pytest.fixture
def log(tmp_path):
    write_instances(tmp_path / "instances.log", [ONE, TWO])
    return tmp_path / "instances.log"


def test_scores_are_printed_and_written(log, tmp_path, capsys):
    main(["--log", str(log), "--output", str(tmp_path / "l.json"), "--details", str(tmp_path / "d.tsv")])
    printed = capsys.readouterr().out
    assert f"laal_ca                 {laal(ONE.clock, 1500, 2):>12.3f}" in printed
    assert "0 of 2 answers are empty" in printed
    written = json.loads((tmp_path / "l.json").read_text())
    assert written["scores"]["laal"]["value"] == pytest.approx(laal(ONE.delays, 1500, 2))
    assert written["scores"]["rtf"]["value"] == pytest.approx(200 / 3000)
    assert written["command"].startswith("python -m espnet_bestow.bin.bestow_latency --log")
    assert len((tmp_path / "d.tsv").read_text().splitlines()) == 3


def test_logs_of_jobs_are_merged(log, tmp_path, capsys):
    other = tmp_path / "other.log"
    write_instances(other, [replace(ONE, index=2, prediction="", delays=(), clock=())])
    main(["--log", str(other), str(log), "--instances", str(tmp_path / "all.log")])
    assert [i.index for i in read_instances(tmp_path / "all.log")] == [0, 1, 2]
    assert "1 of 3 answers are empty" in capsys.readouterr().out


def test_word_delays_come_from_a_ctm(log, tmp_path):
    (tmp_path / "wav.scp").write_text("spk-a-asr_en /y/a.wav\nspk-b-asr_en /y/b.wav\n")
    (tmp_path / "ctm").write_text(
        "".join(f"spk-{u}-asr_en 1 0.1 0.2 der\nspk-{u}-asr_en 1 0.4 0.3 alte\n" for u in "ab")
    )
    options = ["--data_dir", str(tmp_path), "--ctm", str(tmp_path / "ctm"), "--output", str(tmp_path / "l.json")]
    main(["--log", str(log), *options])
    more = json.loads((tmp_path / "l.json").read_text())["more"]
    assert more["word_delay_p50"] == 500  # 500, 800 and 500 after their onsets; "neue" was not said
    assert more["word_delay_p50_ca"] == 550
    assert (more["matched_words"], more["spoken_words"]) == (3, 4)


def test_simulstreams_log_is_scored_on_the_true_clock(tmp_path, capsys):
    (tmp_path / "wav.scp").write_text("spk-a /y/a.wav\n")
    (tmp_path / "text").write_text("spk-a der alte\n")
    chunks = (Chunk(0.6, 0.9, ("der",)), Chunk(1.2, 0.1, ("alte",)))
    write_chunk_log(tmp_path / "log.jsonl", [Recording("a.wav", chunks)])
    options = ["--format", "chunks", "--data_dir", str(tmp_path), "--instances", str(tmp_path / "instances.log")]
    main(["--log", str(tmp_path / "log.jsonl"), *options])
    (instance,) = read_instances(tmp_path / "instances.log")
    assert instance.clock == pytest.approx((1500, 1600))
    assert "laal_ca" in capsys.readouterr().out


def test_recordings_of_one_name_in_several_folders(tmp_path):
    """The log's path tells them apart; a bare name that means both is an error, never the first of them."""
    (tmp_path / "wav.scp").write_text("one-asr_en /x/1/a.wav\none-ast_en /x/1/a.wav\ntwo-asr_en /x/2/a.wav\n")
    (tmp_path / "text").write_text("one-asr_en der\none-ast_en the\ntwo-asr_en alte\n")
    chunks = (Chunk(0.6, 0.1, ("alte",)),)
    options = ["--format", "chunks", "--data_dir", str(tmp_path), "--instances", str(tmp_path / "instances.log")]
    log = tmp_path / "log.jsonl"
    write_chunk_log(log, [Recording("/x/2/a.wav", chunks), Recording("/x/1/a.wav", chunks)])
    main(["--log", str(log), *options])
    assert [i.reference for i in read_instances(tmp_path / "instances.log")] == ["alte", "der"]
    write_chunk_log(log, [Recording("one-ast_en", chunks)])  # as we name rows that share a recording
    main(["--log", str(log), *options])
    assert [i.reference for i in read_instances(tmp_path / "instances.log")] == ["the"]
    write_chunk_log(log, [Recording("a.wav", chunks)])
    with pytest.raises(SystemExit, match=r"recording 'a\.wav' may be any of /x/1/a\.wav, /x/2/a\.wav"):
        main(["--log", str(log), *options])


def test_long_recordings_need_segments(tmp_path, capsys):
    write_instances(tmp_path / "instances.log", [ONE])
    (tmp_path / "cuts.json").write_text('[{"wav": "a.wav", "offset": 0.1, "duration": 1.4}]')
    (tmp_path / "refs").write_text("der alte\n")
    log, cuts, refs = (str(tmp_path / name) for name in ("instances.log", "cuts.json", "refs"))
    main(["--log", log, "--segments", cuts, "--references", refs])
    assert f"long_yaal               {((500 + 1100 - 700) / 2):>12.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--log", "{tmp}/none.log"], "No such file"),
        (["--log", "{tmp}/instances.log", "--unit", "char"], "7 chars were written"),
        (["--log", "{tmp}/instances.log", "--segments", "{tmp}/cuts.json"], "go together"),
        (["--log", "{tmp}/instances.log", "--format", "chunks"], "needs references"),
        (["--log", "{tmp}/instances.log", "{tmp}/instances.log"], "index 0 appears a second time"),
    ],
)
def test_bad_input_ends_in_one_line(log, tmp_path, options, message):
    with pytest.raises(SystemExit) as stop:
        main([option.format(tmp=tmp_path) for option in options])
    assert message in str(stop.value)
    assert str(stop.value).startswith("bestow_latency: ")
    assert "\n" not in str(stop.value)
