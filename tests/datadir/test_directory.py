import pytest

from espnet_bestow.audio import Span
from espnet_bestow.datadir import (
    AudioSource,
    DataDir,
    DataDirError,
    Problem,
    count_problems,
    read_rejected,
    read_table,
    write_rejected,
)
from tests.datadir.helpers import lines, write_files


@pytest.fixture
def folder(tmp_path):
    return write_files(
        tmp_path / "set",
        wav_scp="b b.wav\na a.wav\n",
        text="a hello world\nb grüße  an alle\n",
        utt2spk="a s1\nb s1\n",
        prompt="a translate to german\nb who does it\n",
        utt2task="a ast_en-de\nb sqa\n",
    )


def test_read_and_write_round_trip(folder, tmp_path):
    data = DataDir.read(folder)
    data.write(tmp_path / "copy")
    copy = DataDir.read(tmp_path / "copy")
    assert copy.tables == data.tables
    assert data.tables["text"]["b"] == "grüße  an alle"
    assert lines(tmp_path / "copy" / "wav.scp") == ["a a.wav", "b b.wav"]
    assert lines(tmp_path / "copy" / "spk2utt") == ["s1 a b"]
    assert not list((tmp_path / "copy").glob("*.partial"))


def test_writing_removes_tables_of_an_earlier_run(folder, tmp_path):
    data = DataDir.read(folder)
    data.write(tmp_path / "out")
    del data.tables["prompt"]
    data.write(tmp_path / "out")
    assert not (tmp_path / "out" / "prompt").exists()


def test_select_keeps_rows_in_every_table(folder):
    chosen = DataDir.read(folder).select(["b"])
    assert {tuple(rows) for rows in chosen.tables.values()} == {("b",)}


def test_ids_that_differ_are_named_once_per_table(folder):
    write_files(folder, text="a hello\nc what\n", prompt="a translate to german\n")
    problems = DataDir.read(folder).id_problems()
    found = {(p.uid, p.problem) for p in problems}
    assert ("b", "id not in text") in found
    assert ("b", "id not in prompt") in found
    assert ("c", "id not in wav.scp") in found
    assert not [p for p in problems if p.uid == "a"]
    missing_text = next(p for p in problems if p.uid == "b" and p.problem == "id not in text")
    assert missing_text.value == "in wav.scp utt2spk utt2task"
    assert count_problems(problems).startswith("2 id not in prompt")


@pytest.mark.parametrize("name", ["wav.scp", "text"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataDirError, match=f"set/{name}: missing file"):
        DataDir.read(folder)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(DataDirError, match="nowhere: no such data directory"):
        DataDir.read(tmp_path / "nowhere")


def test_duplicated_key_is_named_with_its_line(folder):
    write_files(folder, text="a x\nb y\na z\n")
    with pytest.raises(DataDirError, match=r"text:3: duplicated key 'a'"):
        DataDir.read(folder)


def test_text_must_be_utf8(folder):
    (folder / "text").write_bytes(b"a ok\nb gr\xfc\xdfe\n")
    with pytest.raises(DataDirError, match=r"text:2: not UTF-8"):
        DataDir.read(folder)


def test_renamed_texts(folder):
    (folder / "text").rename(folder / "text.tc.de")
    data = DataDir.read(folder, {"text": "text.tc.de"})
    assert data.tables["text"]["a"] == "hello world"
    with pytest.raises(DataDirError, match=r"text\.tc\.fr: missing file"):
        DataDir.read(folder, {"text": "text.tc.fr"})


def test_table_reader_takes_what_windows_and_tabs_leave(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"a\tone two\r\n\r\nb\r\nc  \xe3\x80\x80x \n")
    assert read_table(path) == {"a": "one two", "b": "", "c": "\u3000x"}


def test_segments_key_the_rows(folder):
    write_files(
        folder,
        wav_scp="rec rec.wav\n",
        segments="a rec 0.5 1.25\nb rec 2 -1\n",
    )
    data = DataDir.read(folder)
    assert data.sources() == {
        "a": AudioSource("rec.wav", Span(0.5, 1.25)),
        "b": AudioSource("rec.wav", Span(2.0, None)),
    }
    assert data.uids() == ["a", "b"]
    assert data.id_problems() == []
    with pytest.raises(DataDirError, match="cut the segments"):
        data.select(["a"])


def test_segment_of_an_unknown_recording_is_a_problem(folder):
    write_files(folder, wav_scp="rec rec.wav\n", segments="a rec 0 1\nb other 0 1\n")
    problems = DataDir.read(folder).id_problems()
    assert [(p.uid, p.problem) for p in problems] == [("b", "id not in segments")]


@pytest.mark.parametrize("line", ["a rec 0", "a rec zero one", "a rec 0 1 2"])
def test_malformed_segments(folder, line):
    write_files(folder, segments=f"{line}\n")
    with pytest.raises(DataDirError, match="is not '<utt> <recording> <start> <end>'"):
        DataDir.read(folder)


def test_rejected_rows_round_trip(tmp_path):
    problems = [
        Problem("a", "x.wav", "truncated file", "1 of 2 samples"),
        Problem("b", "sox y |", "pipe failed", "exit status 1: no\tsuch"),
    ]
    write_rejected(tmp_path / "rejected.tsv", problems)
    back = read_rejected(tmp_path / "rejected.tsv")
    assert back[0] == problems[0]
    assert back[1].value == "exit status 1: no such"
    assert read_rejected(tmp_path / "none.tsv") == []
