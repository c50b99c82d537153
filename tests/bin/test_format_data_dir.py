import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import audio_info, read_audio
from espnet_bestow.bin.format_data_dir import main
from espnet_bestow.datadir import DataDir, read_rejected
from tests.datadir.helpers import counting_pipe, lines, write_audio, write_files


def format_dir(folder, out, *options: str) -> DataDir:
    main(["--data_dir", str(folder), "--output_dir", str(out), *options])
    return DataDir.read(out)


@pytest.fixture
def folder(tmp_path):
    """Rows a1 and a2 share a file that needs no change, b must be converted, c is cut."""
    ready = write_audio(tmp_path / "ready.flac", 0.5)
    phone = write_audio(tmp_path / "phone.wav", 0.5, rate=44100, channels=2)
    cut = write_audio(tmp_path / "cut.wav", 0.5)
    cut.write_bytes(cut.read_bytes()[:2000])
    return write_files(
        tmp_path / "data",
        wav_scp=f"a1 {ready}\na2 {ready}\nb {phone}\nc {cut}\n",
        text="a1 hello\na2 hallo\nb hello\nc hello\n",
        utt2task="a1 asr_en\na2 ast_en-de\nb asr_en\nc asr_en\n",
    )


@pytest.mark.parametrize("nj", ["1", "2"])
def test_everything_becomes_16k_mono(folder, tmp_path, nj):
    data = format_dir(folder, tmp_path / "out", "--nj", nj)
    audio = data.tables["wav.scp"]
    # No copy of what is right already, and one decision for both rows of a file.
    assert audio["a1"] == audio["a2"] == str(tmp_path / "ready.flac")
    info = audio_info(audio["b"])
    assert (info.rate, info.channels, info.format, info.frames) == (16000, 1, "FLAC", 8000)
    assert data.tables["utt2num_samples"] == {"a1": "8000", "a2": "8000", "b": "8000"}
    expected = read_audio(tmp_path / "phone.wav")
    np.testing.assert_allclose(read_audio(audio["b"]), expected, atol=1 / 32768)


def test_unusable_audio_is_listed_and_its_texts_stay(folder, tmp_path, capsys):
    data = format_dir(folder, tmp_path / "out")
    (problem,) = read_rejected(tmp_path / "out" / "rejected.tsv")
    assert (problem.uid, problem.problem) == ("c", "truncated file")
    assert problem.file == str(tmp_path / "cut.wav")
    assert data.tables["text"]["c"] == "hello"
    assert "unusable audio: 1 truncated file" in capsys.readouterr().err


def test_prompts_and_speakers_are_filled_in(folder, tmp_path):
    data = format_dir(folder, tmp_path / "out")
    assert data.tables["prompt"]["a1"] == "transcribe the english speech"
    assert data.tables["prompt"]["a2"] == "translate to german"
    assert data.tables["utt2spk"]["b"] == "b"
    assert "src_text" not in data.tables


def test_directory_of_another_recipe_works_with_a_task(folder, tmp_path):
    (folder / "utt2task").unlink()
    data = format_dir(folder, tmp_path / "out", "--task", "asr_de")
    assert set(data.tables["utt2task"].values()) == {"asr_de"}
    assert data.tables["prompt"]["b"] == "transcribe the german speech"
    # In recognition the answer is the transcript.
    assert data.tables["src_text"] == data.tables["text"]


def test_translation_directory_with_espnet_names(folder, tmp_path):
    (folder / "utt2task").unlink()
    (folder / "text").rename(folder / "text.tc.de")
    write_files(folder, **{"text.tc.en": "a1 one\na2 two\nb three\nc four\n"})
    options = ["--task", "ast_en-de", "--text_file", "text.tc.de", "--src_text_file", "text.tc.en"]
    data = format_dir(folder, tmp_path / "out", *options)
    assert data.tables["text"]["a2"] == "hallo"
    assert data.tables["src_text"]["a2"] == "two"


def test_own_prompts_are_kept(folder, tmp_path):
    write_files(folder, prompt="a1 listen\na2 listen\nb listen\nc listen\n")
    assert format_dir(folder, tmp_path / "out").tables["prompt"]["b"] == "listen"


@pytest.mark.parametrize(
    ("task", "message"),
    [("", "no utt2task file, so --task must name"), ("sqa", "task 'sqa' has no default prompt")],
)
def test_missing_task_or_prompt_is_one_error(folder, tmp_path, task, message):
    (folder / "utt2task").unlink()
    with pytest.raises(SystemExit, match=message):
        format_dir(folder, tmp_path / "out", "--task", task)


def test_segments_are_cut(tmp_path):
    recording = write_audio(tmp_path / "talk.wav", 3.0)
    folder = write_files(
        tmp_path / "data",
        wav_scp=f"talk {recording}\n",
        segments="u1 talk 0.5 1.0\nu2 talk 1.0 2.5\nu3 talk 2.5 9.0\n",
        text="u1 one\nu2 two\nu3 three\n",
    )
    data = format_dir(folder, tmp_path / "out", "--task", "asr_en", "--max_seconds", "2")
    assert data.tables["utt2num_samples"] == {"u1": "8000", "u2": "24000"}
    whole = read_audio(recording)
    np.testing.assert_array_equal(read_audio(data.tables["wav.scp"]["u1"]), whole[8000:16000])
    assert not (tmp_path / "out" / "segments").exists()
    (problem,) = read_rejected(tmp_path / "out" / "rejected.tsv")
    assert (problem.uid, problem.problem) == ("u3", "segment outside of its recording")


@pytest.mark.parametrize("nj", ["1", "2"])
def test_a_pipe_runs_once_for_all_its_segments(tmp_path, nj):
    recording, other = write_audio(tmp_path / "talk.wav", 3.0), write_audio(tmp_path / "other.wav", 1.0)
    pipe, runs = counting_pipe(tmp_path, f"cat {recording}")
    folder = write_files(
        tmp_path / "data",
        wav_scp=f"talk {pipe}\nother {other}\n",
        segments="u1 talk 2.0 2.5\nu2 other 0 1\nu3 talk 0 9\nu4 talk 0 0.5\nu5 talk 0 -1\n",
        text="u1 a\nu2 b\nu3 c\nu4 d\nu5 e\n",
    )
    data = format_dir(folder, tmp_path / "out", "--task", "asr", "--max_seconds", "2", "--nj", nj)
    assert lines(runs) == ["run"]
    whole, audio = read_audio(recording), data.tables["wav.scp"]
    np.testing.assert_array_equal(read_audio(audio["u1"]), whole[32000:40000])
    np.testing.assert_array_equal(read_audio(audio["u4"]), whole[:8000])
    assert data.tables["utt2num_samples"] == {"u1": "8000", "u2": "16000", "u4": "8000"}
    problems = [(p.uid, p.file, p.problem) for p in read_rejected(tmp_path / "out" / "rejected.tsv")]
    assert problems == [("u3", pipe, "segment outside of its recording"), ("u5", pipe, "too long")]


def test_a_pipe_that_fails_is_a_problem_of_each_of_its_segments(tmp_path):
    pipe, runs = counting_pipe(tmp_path, "exit 3")
    segments = "u1 talk 0 1\nu2 talk 1 2\nu3 next 0 1\n"
    recordings = f"talk {pipe}\nnext {write_audio(tmp_path / 'next.wav', 1.0)}\n"
    folder = write_files(tmp_path / "data", wav_scp=recordings, segments=segments, text="u1 a\nu2 b\nu3 c\n")
    data = format_dir(folder, tmp_path / "out", "--task", "asr")
    assert lines(runs) == ["run"]
    problems = [(p.uid, p.problem, p.value) for p in read_rejected(tmp_path / "out" / "rejected.tsv")]
    assert problems == [(uid, "pipe failed", "exit status 3: no message") for uid in ("u1", "u2")]
    assert list(data.tables["wav.scp"]) == ["u3"]


def test_ids_with_slashes_become_one_file_each(tmp_path):
    sounds = [write_audio(tmp_path / f"{n}.wav", 0.1, rate=8000) for n in "ab"]
    folder = write_files(tmp_path / "data", wav_scp=f"s/1 {sounds[0]}\ns_1 {sounds[1]}\n", text="s/1 a\ns_1 b\n")
    data = format_dir(folder, tmp_path / "out", "--task", "asr")
    assert len(set(data.tables["wav.scp"].values())) == 2
    assert all(soundfile.info(path).frames == 1600 for path in data.tables["wav.scp"].values())


def test_sampling_rate_is_an_option(folder, tmp_path):
    data = format_dir(folder, tmp_path / "out", "--fs", "8k")
    assert audio_info(data.tables["wav.scp"]["a1"]).rate == 8000
    with pytest.raises(SystemExit):
        format_dir(folder, tmp_path / "out", "--fs", "fast")


def test_second_run_gives_the_same(folder, tmp_path):
    format_dir(folder, tmp_path / "out")
    before = {p.name: lines(p) for p in (tmp_path / "out").iterdir() if p.is_file()}
    format_dir(folder, tmp_path / "out")
    assert before == {p.name: lines(p) for p in (tmp_path / "out").iterdir() if p.is_file()}
