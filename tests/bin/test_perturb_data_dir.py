import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import read_audio
from espnet_bestow.bin.format_data_dir import main as format_main
from espnet_bestow.bin.perturb_data_dir import main
from espnet_bestow.datadir import DataDir, read_rejected
from tests.datadir.helpers import counting_pipe, lines, write_audio, write_files


def perturb(folder, out, *options: str) -> DataDir:
    main(["--data_dir", str(folder), "--output_dir", str(out), *options])
    return DataDir.read(out)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000), 16000)
    return write_files(
        tmp_path / "data",
        wav_scp=f"s-a {path}\ns-b {path}\n",
        text="s-a hello\ns-b hallo\n",
        utt2spk="s-a s\ns-b s\n",
        utt2task="s-a asr_en\ns-b ast_en-de\n",
        utt2num_samples="s-a 16000\ns-b 16000\n",
    )


@pytest.mark.parametrize("nj", ["1", "2"])
def test_copies_are_faster_and_slower(folder, tmp_path, nj):
    data = perturb(folder, tmp_path / "out", "--speeds", "0.9", "1.0", "1.1", "--nj", nj)
    assert len(data.uids()) == 6
    assert data.id_problems() == []
    assert data.tables["utt2spk"]["sp0.9-s-a"] == "sp0.9-s"
    assert data.tables["text"]["sp1.1-s-b"] == "hallo"
    audio = data.tables["wav.scp"]
    assert audio["s-a"] == str(tmp_path / "tone.wav")
    # Rows that share a file share its copy.
    assert audio["sp0.9-s-a"] == audio["sp0.9-s-b"]
    # Lengths of the copies differ: those of the source must not be passed off as theirs.
    assert "utt2num_samples" not in data.tables
    for speed in (0.9, 1.1):
        samples = read_audio(audio[f"sp{speed}-s-a"])
        assert len(samples) == pytest.approx(16000 / speed, abs=1)
        peak = np.argmax(np.abs(np.fft.rfft(samples))) * 16000 / len(samples)
        assert peak == pytest.approx(440 * speed, abs=1.5)


def test_without_1_only_the_copies_remain(folder, tmp_path):
    assert perturb(folder, tmp_path / "out", "--speeds", "0.9").uids() == [
        "sp0.9-s-a",
        "sp0.9-s-b",
    ]


def test_unreadable_audio_is_left_to_the_filter(folder, tmp_path, capsys):
    write_files(folder, wav_scp="s-a none.wav\ns-b none.wav\n")
    data = perturb(folder, tmp_path / "out", "--speeds", "0.9", "1.0")
    assert set(data.tables["wav.scp"].values()) == {"none.wav"}
    assert "left to stage 4: 1 missing file" in capsys.readouterr().err
    format_main(["--data_dir", str(tmp_path / "out"), "--output_dir", str(tmp_path / "raw")])
    assert {p.uid for p in read_rejected(tmp_path / "raw" / "rejected.tsv")} == set(data.uids())


def test_segments_become_utterances(tmp_path):
    talk = write_audio(tmp_path / "talk.wav", 2.0)
    folder = write_files(
        tmp_path / "data",
        wav_scp=f"talk {talk}\n",
        segments="u1 talk 0 1\nu2 talk 1 2\nu3 talk 1 7\n",
        text="u1 a\nu2 b\nu3 c\n",
    )
    data = perturb(folder, tmp_path / "out", "--speeds", "1.0", "1.1")
    assert len(read_audio(data.tables["wav.scp"]["u2"])) == 16000
    assert len(read_audio(data.tables["wav.scp"]["sp1.1-u2"])) == pytest.approx(14545, abs=1)
    # Not the whole recording in place of its bad part: stage 4 will find the id without audio.
    assert {p.uid for p in data.id_problems()} == {"u3", "sp1.1-u3"}


def test_a_pipe_runs_once_for_all_segments_and_speeds(tmp_path):
    pipe, runs = counting_pipe(tmp_path, f"cat {write_audio(tmp_path / 'talk.wav', 2.0)}")
    segments = "u1 talk 0 1\nu2 talk 1 2\n"
    folder = write_files(tmp_path / "data", wav_scp=f"talk {pipe}\n", segments=segments, text="u1 a\nu2 b\n")
    data = perturb(folder, tmp_path / "out", "--speeds", "0.9", "1.0")
    assert lines(runs) == ["run"]
    assert [len(read_audio(file)) for _, file in sorted(data.tables["wav.scp"].items())] == [17778, 17778, 16000, 16000]


@pytest.mark.parametrize("speed", ["0", "fast", "3"])
def test_speed_must_make_sense(folder, tmp_path, capsys, speed):
    with pytest.raises(SystemExit):
        perturb(folder, tmp_path / "out", "--speeds", speed)
    assert f"'{speed}' is not a speed" in capsys.readouterr().err
