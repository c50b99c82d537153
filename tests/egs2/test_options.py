"""bestow.sh's own option parser."""

import re

import pytest

from tests.egs2.shell import EGS2, TEMPLATE, run

BESTOW = TEMPLATE / "bestow.sh"


def test_help_lists_every_option_with_its_default(tmp_path):
    done = run(tmp_path, BESTOW, "--help")
    assert done.returncode == 0
    block = BESTOW.read_text().split("# options begin")[1].split("# options end")[0]
    names = re.findall(r"^([a-z]\w*)=", block, re.MULTILINE)
    assert len(names) > 40
    for name in names:
        assert re.search(rf"^  --{name} .+\(default: .+\)$", done.stdout, re.MULTILINE), name
    assert "--nbpe                    Vocabulary size of the small one (default: 300)" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beam", "5"], "unknown option --beam (see --help)"),
        (["--PATH", "x"], "unknown option --PATH (see --help)"),
        (["--current_stage", "3"], "unknown option --current_stage (see --help)"),
        (["--nj", "two"], "--nj must be a whole number, not 'two'"),
        (["--ngpu", "-1"], "--ngpu must be a whole number, not '-1'"),
        (["--skip_train", "yes"], "--skip_train must be true or false, not 'yes'"),
        (["--stage"], "--stage needs a value"),
        (["train"], "unexpected argument 'train' (options look like --name value)"),
        ([""], "unexpected argument '' (options look like --name value)"),
        (["--beam=5", "--nj", "1"], "unknown option --beam (see --help)"),
        (["--inference_nj", "0"], "--inference_nj must be at least 1, not 0"),
        (["--skip_stages", "2 three"], "--skip_stages must be numbers, not '2 three'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path, words, message):
    done = run(tmp_path, BESTOW, "--stage", "99", *words)
    assert done.returncode == 2
    assert done.stderr == f"error: {message}\n"
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["--stage", "99"], ["--stage=5", "--stop_stage=4"], ["--stop-stage", "0"]])
def test_empty_range_of_stages_does_nothing(tmp_path, words):
    done = run(tmp_path, BESTOW, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_stages_can_be_left_out(tmp_path):
    for stages in ("1 2 3 4 5", "1,2,3, 4,5"):
        done = run(tmp_path, BESTOW, "--stop_stage", "5", "--skip_stages", stages)
        assert (done.returncode, done.stdout) == (0, "")
    done = run(tmp_path, BESTOW, "--stop_stage", "5", "--skip_data_prep", "true")
    assert (done.returncode, done.stdout) == (0, "")


def test_seconds_may_be_fractions(tmp_path):
    done = run(tmp_path, BESTOW, "--stage", "99", "--max_wav_duration", "12.5", "--max_raw_duration", "30")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--part", "a b", "--nj", "3"], ["--nj", "3", "--part=a b"]])
def test_a_recipe_takes_its_own_options_and_passes_the_others_on(tmp_path, words):
    (tmp_path / "run.sh").write_text(f"""set -euo pipefail
# options begin
part=x  # Which
# options end
. {TEMPLATE}/scripts/parse_options.sh
take_options run.sh "$@"
printf '%s\n' "${{part}}" "${{others[@]}}"
""")
    assert run(tmp_path, "bash", "run.sh", *words).stdout.splitlines() == ["a b", "--nj", "3"]


def test_quotes_keep_blanks_in_options_for_the_data_stage(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "data.sh").write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    (tmp_path / "local" / "data.sh").chmod(0o755)
    words = ["--stop_stage", "1", "--warm", "false", "--train_set", "t", "--local_data_opts"]
    assert "<--folder><a b>" in run(tmp_path, BESTOW, *words, "--folder 'a b'").stdout
    assert "<--folder><a b><>" in run(tmp_path, BESTOW, *words, r"--folder a\ b ''").stdout


def test_stages_without_work_say_so(tmp_path):
    done = run(tmp_path, BESTOW, "--stage", "2", "--stop_stage", "2", "--train_set", "train")
    assert done.returncode == 0
    assert "=== stage 2: speed perturbation" in done.stdout
    assert "nothing to do without --speed_perturb_factors" in done.stdout
    assert re.search(r"=== stage 2 finished in 0:00:0\d", done.stdout)
    words = ["--stage", "6", "--stop_stage", "8", "--llm", "some/llm"]
    done = run(tmp_path, BESTOW, *words)
    assert done.stdout.count("skipped: the language model is some/llm") == 3


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("3", "stage 3 needs --train_set"),
        ("11", "stage 11: no file exp/bestow_stats/train/speech_shape (run stage 10)"),
        ("12", "stage 12 needs --test_sets"),
        ("14", "stage 14: no file exp/bestow/valid.acc.best.pth (run stage 11)"),
    ],
)
def test_stage_out_of_order_says_what_is_missing(tmp_path, stage, message):
    done = run(tmp_path, BESTOW, "--stage", stage, "--stop_stage", stage)
    assert done.returncode == 1
    assert done.stderr == f"error: {message}\n"


def test_mini_recipe_passes_options_on(tmp_path):
    run_sh = EGS2 / "mini" / "bestow1" / "run.sh"
    assert run(tmp_path, run_sh, "--stage", "99").returncode == 0
    done = run(tmp_path, run_sh, "--oops", "1")
    assert (done.returncode, done.stderr) == (2, "error: unknown option --oops (see --help)\n")
    own, shared = run(tmp_path, run_sh, "--help").stdout.split("Usage: bestow.sh")
    assert own.startswith("Usage: run.sh") and "--tier " in own and "--nbpe " in shared


def test_espnet_root_must_be_a_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path))
    (tmp_path / "path.sh").symlink_to(TEMPLATE / "path.sh")
    done = run(tmp_path, BESTOW, "--stage", "99")
    assert done.returncode == 1
    assert f"ESPNET_ROOT={tmp_path} is not an ESPnet clone" in done.stderr


def test_tools_of_an_espnet_clone_are_found(tmp_path, monkeypatch):
    utils = tmp_path / "egs2" / "TEMPLATE" / "asr1" / "utils"
    utils.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "extra_path.sh").write_text("export FROM_CLONE=${NEVER_SET:-}yes\n")
    monkeypatch.setenv("ESPNET_ROOT", str(tmp_path))
    script = f'set -euo pipefail; . {TEMPLATE / "path.sh"}; echo "${{FROM_CLONE}} ${{PATH}}"'
    done = run(tmp_path, "bash", "-c", script)
    assert done.stdout.startswith(f"yes {utils}:")


def test_new_recipe_gets_its_frame(tmp_path):
    (tmp_path / "egs2").mkdir()
    (tmp_path / "egs2" / "TEMPLATE").symlink_to(TEMPLATE.parent)
    target = tmp_path / "egs2" / "corpus" / "bestow1"
    done = run(tmp_path, TEMPLATE / "setup.sh", target)
    assert done.returncode == 0, done.stderr
    assert run(target, "./bestow.sh", "--stage", "99").returncode == 0
    assert (target / "cmd.sh").is_file()
    assert not (target / "cmd.sh").is_symlink()
    assert (target / "db.sh").resolve() == TEMPLATE / "db.sh"
    (target / "db.sh").unlink()
    (target / "db.sh").write_text("CORPUS=here\n")
    assert run(tmp_path, TEMPLATE / "setup.sh", target).returncode == 0
    assert (target / "db.sh").read_text() == "CORPUS=here\n"
    wrong = run(tmp_path, TEMPLATE / "setup.sh", tmp_path / "elsewhere")
    assert (wrong.returncode, "TEMPLATE" in wrong.stderr) == (1, True)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "egs2" / "other").mkdir()
    assert run(tmp_path / "egs2" / "other", TEMPLATE / "setup.sh", "bestow1/").returncode == 0


def test_every_place_of_a_corpus_in_db_is_read_by_a_recipe():
    places = re.findall(r"^(\w+)=", (TEMPLATE / "db.sh").read_text("utf-8"), re.MULTILINE)
    readers = "".join(file.read_text("utf-8") for file in EGS2.glob("*/bestow1/local/data.sh"))
    assert places == [place for place in places if f"${{{place}}}" in readers]
    assert all(file.resolve() == TEMPLATE / "db.sh" for file in EGS2.glob("*/bestow1/db.sh"))
