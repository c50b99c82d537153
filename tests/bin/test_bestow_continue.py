import pytest
import torch

from espnet_bestow.bin.bestow_continue import SUFFIX, main
from espnet_bestow.datadir import DataDir, read_rejected
from espnet_bestow.llm.causal_lm import load_causal_lm
from espnet_bestow.llm.continuation import Continuer
from espnet_bestow.prompt import build_template
from tests.datadir.helpers import write_audio, write_files
from tests.llm_fixtures import write_llm

SAID = {"s-a": "the small dog", "s-b": "translate to german", "s-c": "sees three red birds in the garden today"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return str(write_llm(tmp_path_factory.mktemp("llm")))


@pytest.fixture
def folder(tmp_path):
    """Three recordings; the first is asked about twice."""
    paths = {uid: write_audio(tmp_path / f"{uid}.wav") for uid in SAID}
    rows = {uid: (paths[uid], words) for uid, words in SAID.items()} | {"s-a2": (paths["s-a"], SAID["s-a"])}
    return write_files(
        tmp_path / "data",
        wav_scp="".join(f"{uid} {path}\n" for uid, (path, _) in rows.items()),
        src_text="".join(f"{uid} {words}\n" for uid, (_, words) in rows.items()),
        text="".join(f"{uid} hello\n" for uid in rows),
        utt2spk="".join(f"{uid} s\n" for uid in rows),
    )


def run(folder, out, llm, *options) -> DataDir:
    main(["--data_dir", str(folder), "--output_dir", str(out), "--llm", llm, "--template", "plain", *options])
    return DataDir.read(out)


@torch.no_grad()
def greedy(llm, prompt: str, most: int) -> list[int]:
    """One token at a time, without cache."""
    model, template = load_causal_lm(llm), build_template("plain", llm)
    ids = template.encode_prompt(prompt)
    written: list[int] = []
    while len(written) < most:
        token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == template.end:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("batch_size", ["1", "2", "16"])
def test_rows_are_what_the_llm_goes_on_with(folder, tmp_path, llm, batch_size, capsys):
    data = run(folder, tmp_path / "out", llm, "--prompt", "go on", "--max_tokens", "12", "--batch_size", batch_size)
    assert data.uids() == [uid + SUFFIX for uid in sorted(SAID)] and data.id_problems() == []
    decode = build_template("plain", llm).decode
    for uid, words in SAID.items():
        new = uid + SUFFIX
        assert data.tables["text"][new] == " ".join(decode(greedy(llm, f"{words}\ngo on", 12)).split())
        assert data.tables["src_text"][new] == words and data.tables["prompt"][new] == "go on"
        assert data.tables["utt2task"][new] == "continuation" and data.tables["utt2spk"][new] == "s"
        assert data.tables["wav.scp"][new].endswith(f"{uid}.wav")
    assert len(set(data.tables["text"].values())) > 1
    assert "out: 3 rows\n" in capsys.readouterr().err


def test_rows_may_ask_what_they_ask(folder, tmp_path, llm):
    write_files(
        folder,
        utt2task="s-a asr_en\ns-a2 ast_en-de\ns-b ast_de-en\ns-c sqa\n",
        prompt="s-a transcribe\ns-a2 translate to german\ns-b translate to english\ns-c what\n",
    )
    options = "--own_prompts", "true", "--tasks", "ast_en-de", "ast_de-en", "--max_tokens", "8"
    tables = run(folder, tmp_path / "out", llm, *options).tables
    assert tables["utt2task"] == {"s-a2" + SUFFIX: "ast_en-de", "s-b" + SUFFIX: "ast_de-en"}
    assert tables["prompt"]["s-b" + SUFFIX] == "translate to english"
    decode = build_template("plain", llm).decode
    said = decode(greedy(llm, f"{SAID['s-a']}\ntranslate to german", 8))
    assert tables["text"]["s-a2" + SUFFIX] == " ".join(said.split())


def test_what_is_left_out_is_counted_and_named(folder, tmp_path, llm, capsys):
    data = run(folder, tmp_path / "out", llm, "--prompt", "go on", "--max_tokens", "4", "--max_prompt_tokens", "12")
    rejected = read_rejected(tmp_path / "out" / "rejected.tsv")
    assert [each.uid for each in rejected] == ["s-c"] and "at most 12" in rejected[0].value
    assert data.uids() == ["s-a" + SUFFIX, "s-b" + SUFFIX]
    assert "out: 2 rows; left out: 1 prompt too long" in capsys.readouterr().err


def test_rows_without_words_are_counted(folder, tmp_path, llm, capsys):
    said = {**SAID, "s-a2": "", "s-b": ""}
    write_files(folder, src_text="".join(f"{uid} {words}\n" for uid, words in said.items()))
    data = run(folder, tmp_path / "out", llm, "--max_tokens", "4")
    assert data.uids() == ["s-a" + SUFFIX, "s-c" + SUFFIX]
    assert "2 rows; left out: 2 empty src_text" in capsys.readouterr().err


def test_the_end_token_ends_a_continuation(llm):
    """An LLM that has nothing to say says nothing."""
    model, template = load_causal_lm(llm), build_template("plain", llm)
    prompts = {"a": template.encode_prompt("hello"), "b": template.encode_prompt("the small dog")}
    first = dict(Continuer(model, template.end, 8)(prompts))
    assert all(template.end not in ids and len(ids) <= 8 for ids in first.values())
    stop = first["a"][2]  # as if this were the end
    cut = dict(Continuer(model, stop, 8)({"a": prompts["a"]}))
    assert cut["a"] == first["a"][: first["a"].index(stop)]


def test_bad_input_is_one_line(folder, tmp_path, llm):
    transcripts = (folder / "src_text").read_text()
    (folder / "src_text").unlink()
    with pytest.raises(SystemExit, match=r"error: .*src_text: missing file"):
        run(folder, tmp_path / "out", llm)
    with pytest.raises(SystemExit, match=r"error: llm path='nowhere'"):
        run(write_files(folder, src_text=transcripts), tmp_path / "out", "nowhere")
    with pytest.raises(SystemExit, match=r"error: .*3 id not in src_text; the first is utterance 's-a2'"):
        run(write_files(folder, src_text="s-a hello\n"), tmp_path / "out", llm)
