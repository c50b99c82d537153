from dataclasses import replace

import pytest

from espnet_bestow.datadir import REJECTED, DataDir, DataDirError, Problem, Row, read_rejected, write_rows
from tests.datadir.helpers import lines

ROW = Row("s-a", "a.flac", "Hallo  Welt", "s", "ast_en-de", "table:2", src_text="hello world")


def test_rows_become_tables(tmp_path, capsys):
    write_rows(tmp_path, [replace(ROW, uid="s-b", text="x\ny"), ROW])
    assert lines(tmp_path / "text") == ["s-a Hallo Welt", "s-b x y"]
    assert lines(tmp_path / "spk2utt") == ["s s-a s-b"]
    assert sorted(DataDir.read(tmp_path).tables) == ["src_text", "text", "utt2spk", "utt2task", "wav.scp"]
    assert read_rejected(tmp_path / REJECTED) == []
    assert capsys.readouterr().err == f"{tmp_path}: 2 rows, 1 speakers\n"


def test_rows_without_words_are_listed(tmp_path, capsys):
    rows = [ROW, replace(ROW, uid="s-b", text=" "), replace(ROW, uid="s-c", src_text="")]
    write_rows(tmp_path, rows, [Problem("s-d", "d.flac", "missing clip", "named in table:5")])
    assert DataDir.read(tmp_path).uids() == ["s-a"]
    assert [(p.uid, p.file, p.problem) for p in read_rejected(tmp_path / REJECTED)] == [
        ("s-d", "d.flac", "missing clip"),
        ("s-c", "table:2", "empty src_text"),
        ("s-b", "table:2", "empty text"),
    ]
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: 1 rows, 1 speakers; left out: 1 missing clip, 1 empty src_text, 1 empty text")
    assert f"the first is utterance 's-d': d.flac: missing clip (named in table:5) (listed in {tmp_path}" in said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, replace(ROW, origin="table:9")], "table:9: row 's-a' comes twice, see also table:2"),
        ([replace(ROW, speaker="s t")], "table:2: 's t' is empty or holds a blank"),
        ([replace(ROW, uid="")], "table:2: '' is empty or holds a blank"),
        ([replace(ROW, text="")], "no row is left; left out: 1 empty text, the first is utterance 's-a': table:2"),
    ],
)
def test_what_cannot_be_a_table_is_an_error(tmp_path, rows, message):
    with pytest.raises(DataDirError, match=message):
        write_rows(tmp_path, rows)
