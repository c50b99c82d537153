"""Stamps, job launching and failures of the recipe scripts."""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.egs2.shell import TEMPLATE, bash, run

ONCE = "work() { echo working; }\nonce out/.done input.txt word -- work"


def test_step_is_done_once_until_its_inputs_change(tmp_path):
    source = tmp_path / "input.txt"
    source.write_text("a")
    assert bash(tmp_path, ONCE).stdout == "working\n"
    again = bash(tmp_path, ONCE).stdout
    assert again == "already done (out/.done)\n"
    source.write_text("b")
    assert bash(tmp_path, ONCE).stdout == "working\n"
    assert bash(tmp_path, ONCE.replace(" word ", " other ")).stdout == "working\n"
    # Touched, but the same.
    os.utime(source, (1, 1))
    assert "already done" in bash(tmp_path, ONCE.replace(" word ", " other ")).stdout


def test_failed_step_leaves_no_stamp_and_knows_its_own_second_try(tmp_path):
    (tmp_path / "input.txt").write_text("a")
    script = ONCE.replace("echo working", 'echo "same ${same_inputs}"; [ -f ok ]')
    first = bash(tmp_path, script)
    assert (first.returncode, first.stdout) == (1, "same false\n")
    assert not (tmp_path / "out" / ".done").exists()
    (tmp_path / "ok").touch()
    assert bash(tmp_path, script).stdout == "same true\n"
    assert "already done" in bash(tmp_path, script).stdout


def test_failure_inside_a_step_stops_everything(tmp_path):
    done = bash(tmp_path, "work() { false; echo went on; }\nonce out/.done -- work\necho after")
    assert (done.returncode, done.stdout) == (1, "")


def test_jobs_run_side_by_side_with_their_own_names(tmp_path):
    start = time.monotonic()
    script = "run_jobs '' 3 log/say.JOB.log bash -c 'sleep 0.5; echo job JOB; echo note >&2'"
    done = bash(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 1.3
    for job in "123":
        assert (tmp_path / "log" / f"say.{job}.log").read_text() == f"job {job}\nnote\n"


def test_failing_job_shows_the_end_of_its_log(tmp_path):
    script = "run_jobs '' 2 log/x.JOB.log bash -c 'seq 100; if [ JOB = 2 ]; then echo broken; exit 7; fi'\necho after"
    done = bash(tmp_path, script)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: exit status 7, last lines of log/x.2.log:" in done.stderr
    assert done.stderr.endswith("    100\n    broken\n")
    assert "    80\n" not in done.stderr


def test_failing_training_shows_the_end_of_its_log(tmp_path):
    done = bash(tmp_path, "run_logged '' d/t.log bash -c 'echo epoch 1; echo oh no >&2; exit 3'")
    assert done.returncode == 1
    # Progress is shown, the log is not, until it is needed.
    assert done.stdout == "epoch 1\n"
    assert "error: exit status 3, last lines of d/t.log:" in done.stderr
    assert "    oh no" in done.stderr


def test_jobs_die_with_the_script(tmp_path):
    done = bash(tmp_path, "sleep 60 & echo $! >pid\nfalse")
    assert done.returncode == 1
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the job outlived its script")


def test_kaldi_launcher_takes_the_place_of_the_local_one(tmp_path):
    launcher = tmp_path / "run.pl"
    launcher.write_text('#!/usr/bin/env bash\necho "$@" >called\n')
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    done = bash(tmp_path, "run_jobs './run.pl --mem 2G' 4 log/a.JOB.log work JOB --x y")
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "called").read_text()
    assert called == "--mem 2G JOB=1:4 log/a.JOB.log work JOB --x y\n"


def test_rows_are_dealt_to_jobs(tmp_path):
    (tmp_path / "wav.scp").write_text("".join(f"u{n} {n}.wav\n" for n in range(5)))
    script = 'jobs=$(at_most 8 wav.scp); echo "${jobs} $(at_most 2 wav.scp)"\nsplit_keys wav.scp 2 keys/k.JOB.scp'
    assert bash(tmp_path, script).stdout == "5 2\n"
    assert (tmp_path / "keys" / "k.1.scp").read_text() == "u0 0.wav\nu2 2.wav\nu4 4.wav\n"
    assert (tmp_path / "keys" / "k.2.scp").read_text() == "u1 1.wav\nu3 3.wav\n"


def test_watched_jobs_count_rows(tmp_path):
    script = "watched_jobs 2 'o.*/text' '' 1 log/a.JOB.log bash -c 'mkdir o.1; seq 2 >o.1/text; sleep 1.3'"
    done = bash(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 rows" in done.stderr


WARM = f"""
threads=(env) python_words=({sys.executable}) warm=true ngpu=0 gpu_inference=false
. {TEMPLATE}/scripts/warm.sh
set_warm_words
"""


def test_warm_processes_have_a_folder_that_goes_with_the_script(tmp_path):
    script = WARM + 'echo "${warm_dir}"; ls -d "${warm_dir}"; echo "${warm_words[@]: -4}"'
    first, second, words = bash(tmp_path, script).stdout.splitlines()
    assert first == second and words.split() == ["-m", "espnet_bestow.warm", "run", first]
    assert not Path(first).exists()


@pytest.mark.parametrize("change", ["decode_cmd=run.pl", "ngpu=1", "gpu_inference=true", "warm=false"])
def test_launchers_and_gpus_start_python_plainly(tmp_path, change):
    script = WARM.replace("set_warm_words", f'{change}; set_warm_words; echo "${{warm_words[@]}}"')
    assert bash(tmp_path, script).stdout.split() == [sys.executable]


VALUES = f'python_words=("{sys.executable}")\n. {TEMPLATE}/scripts/model.sh\n'


def test_a_ctc_head_is_taken_over_however_its_weight_is_written(tmp_path):
    for name, conf in {
        "block": "model_conf:\n    ctc_weight: 0.2  # more\n",
        "flow": "model_conf: {lsm_weight: 0.1, ctc_weight: 1.0}\n",
        "none": "model_conf:\n    ctc_weight: 0.0\n",
        "remark": "model_conf: {}  # ctc_weight: 0.3\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(conf)
    loop = "init=(); for name in block flow none remark; do add_ctc_head $name.yaml $name.pth; done; echo ${init[@]}"
    assert bash(tmp_path, VALUES + loop).stdout.split() == ["block.pth:ctc:ctc", "flow.pth:ctc:ctc"]


def test_a_configuration_that_cannot_be_read_ends_the_stage(tmp_path):
    (tmp_path / "broken.yaml").write_text("encoder: [")
    done = bash(tmp_path, VALUES + "init=(); add_ctc_head broken.yaml w.pth; echo went on")
    assert (done.returncode, done.stdout) == (1, "") and "broken.yaml: not YAML" in done.stderr


TRAIN = (
    VALUES
    + """
stats_dir=stats llm_path=llm train_launcher= node_rank=0 current_stage=11
set_data_options() { data_options=(); }
set_trainer() { trainer=(train); }
run_logged() { printf '%s\\n' "$@"; }
"""
)


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ("encoder: x\n", ["--normalize", "global_mvn", "--normalize_conf", "stats_file=stats/train/feats_stats.npz"]),
        ("normalize: global_mvn\n", ["--normalize", "global_mvn", "--normalize_conf"]),
        ("normalize: global_mvn\nnormalize_conf: {stats_file: mine.npz}\n", []),
        ("normalize: running_mvn\n", ["--normalize_conf", "stats_file=stats/train/feats_stats.npz"]),
        ("normalize: utterance_mvn\n", []),
        ("normalize: null\n", []),
    ],
)
def test_statistics_go_to_what_normalises_by_them(tmp_path, conf, words):
    for name in ("stats/train/feats_stats.npz", "exp/train.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(conf)
    told = bash(tmp_path, TRAIN + "train_model exp stats").stdout.splitlines()
    found = told[told.index("stats/valid/text_shape") + 1 :]
    assert found[: len(words)] == words and bool(found) == bool(words)


def test_without_statistics_global_mvn_says_why(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "train.yaml").write_text("encoder: x\n")
    done = bash(tmp_path, TRAIN + "train_model exp stats")
    assert done.returncode == 1 and "extract_feats_in_collect_stats" in done.stderr


@pytest.mark.parametrize(("conf", "begins"), [("init_param: [mine.pth]\n", False), ("seed: 1\n", True)])
def test_a_configuration_may_say_where_to_begin(tmp_path, conf, begins):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "train.yaml").write_text(f"normalize: null\n{conf}")
    told = bash(tmp_path, TRAIN + "train_model exp stats --init_param a.pth b.pth:x:x --model_conf teacher=t")
    begin = ["--init_param", "a.pth", "b.pth:x:x"] if begins else []
    assert told.stdout.splitlines()[-2 - len(begin) :] == [*begin, "--model_conf", "teacher=t"]
    assert ("a.pth" in told.stdout) == begins


def test_a_training_goes_on_only_with_what_it_began_with(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "checkpoint.pth").touch()
    began = "max_epoch: 1\nbatch_size: 8\nseed: 1\noptim_conf: {lr: 0.1}\n"
    keep = VALUES + "keep_origin exp data.scp; echo goes on"
    for conf, goes_on in (
        (began, True),
        (began.replace("max_epoch: 1", "max_epoch: 2").replace("size: 8", "size: 4"), True),
        (began.replace("0.1", "0.2"), False),
        (began + "connector: slm\n", False),
        (began, True),
    ):
        (tmp_path / "exp" / "train.yaml").write_text(conf)
        done = bash(tmp_path, keep)
        assert (done.stdout == "goes on\n") == goes_on and ("began with other" in done.stderr) != goes_on


def test_a_configuration_is_made_of_layers_in_their_order(tmp_path):
    script = (
        f'. {TEMPLATE}/scripts/model.sh\npy() {{ printf \'%s\\n\' files "$@"; }}\nwarm_py() {{ py options "$@"; }}\n'
    )
    plain = bash(tmp_path, script + "configure out base.yaml '' over.yaml a.b=2").stdout.splitlines()
    assert plain[0] == "files" and plain[3:] == [
        "--config=base.yaml",
        "--config=over.yaml",
        "--setting=a.b=2",
        "--output",
        "out/train.yaml",
    ]
    mixed = bash(tmp_path, script + "configure out base.yaml ' --seed 3' over.yaml '--max_epoch 5'").stdout.splitlines()
    assert mixed[:2] == ["files", "options"]  # ESPnet is needed
    assert mixed[4:8] == ["--config=base.yaml", "--options= --seed 3", "--config=over.yaml", "--options=--max_epoch 5"]


def with_variant(folder, variant):
    """Stage 10 without data, which ends once the configuration is written."""
    (folder / "base.yaml").write_text("encoder: conformer\nencoder_conf: {num_blocks: 4}\nseed: 1\n")
    words = ["--stage", "10", "--stop_stage", "10", "--python", sys.executable, "--train_set", "train"]
    words += ["--valid_set", "valid", "--bestow_config", "base.yaml", "--variant_config", variant]
    return run(folder, TEMPLATE / "bestow.sh", *words).stderr


def test_a_variant_lies_over_the_configuration_and_names_the_experiment(tmp_path):
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "rnn.yaml").write_text("encoder: rnn\n")
    assert "error: stage 10: no file dump/raw/train/wav.scp" in with_variant(tmp_path, "variants/rnn.yaml")
    assert (tmp_path / "exp" / "bestow_rnn" / "train.yaml").read_text() == "encoder: rnn\nseed: 1\n"


def test_a_variant_that_is_not_there_is_named(tmp_path):
    assert "error: stage 10: no file none.yaml (--variant_config)" in with_variant(tmp_path, "none.yaml")


def test_texts_under_other_names_are_inputs(tmp_path):
    script = f"text_file=text.tc.de src_text_file=text.tc.en\n. {TEMPLATE}/scripts/data.sh\ntables data/train"
    assert {"data/train/text.tc.de", "data/train/text.tc.en"} <= set(bash(tmp_path, script).stdout.split())


@pytest.mark.parametrize(("launcher", "device"), [("", "cpu"), ("slurm.pl --gpu 1", "cuda")])
def test_models_stream_where_they_decode(tmp_path, launcher, device):
    (tmp_path / "wav.scp").write_text("u0 0.wav\n")
    script = f"""
. {TEMPLATE}/scripts/streaming.sh
decode_launcher="{launcher}" decode_device={device} raw=. inference_nj=1 segment_size=320 same_inputs=true
warm_words=(python) streaming_words=(asr_en) simulate_words=()
py() {{ :; }}
run_jobs() {{ printf '%s\n' "$@"; }}
simulate_set model out . wait_k:k=4
"""
    words = bash(tmp_path, script).stdout.splitlines()
    assert words[0] == launcher
    assert words[words.index("--device") + 1] == device


@pytest.mark.parametrize(
    ("encoder", "model_conf", "teacher"),
    [
        ("conformer", "    teacher_weight: 1.0\n", ["teacher=exp/bidi"]),
        ("conformer", "", []),
        ("'conformer'  # quoted", "    teacher_weight: 1.0  # frames of whole recordings\n", ["teacher=exp/bidi"]),
        ("another", "    teacher_weight: 1.0\n", []),  # its frames are not those of the model before
    ],
)
def test_a_weight_makes_the_model_before_the_teacher_of_a_streaming_encoder(tmp_path, encoder, model_conf, teacher):
    (tmp_path / "offline.yaml").write_text("encoder: conformer\n")
    (tmp_path / "unid.yaml").write_text(f"encoder: {encoder}\nmodel_conf:\n    ctc_weight: 0.2\n{model_conf}")
    script = f"""{VALUES}
. {TEMPLATE}/scripts/streaming.sh
origin=() before_unid=exp/bidi/valid.pth offline_weights=exp/offline.pth unid_exp=unid unid_ctc_config= stats_dir=stats
offline_config=offline.yaml
mkdir unid; cp unid.yaml unid/train.yaml
keep_origin() {{ :; }}
train_model() {{ printf '%s\n' "$@"; }}
train_unid
"""
    words = bash(tmp_path, script).stdout.splitlines()
    assert words[:2] == ["unid", "stats"]
    assert [word for word in words if word.startswith("teacher")] == teacher


FILTERS = f"""
raw=raw tokenizer=tok train_set=train valid_set=valid tests=() nj=1 fs=16000 offline_config=c.yaml skip_bad_utts=true
min_wav_duration=0.1 max_wav_duration=9 max_raw_duration=9 text_file=text src_text_file=src_text
. {TEMPLATE}/scripts/data.sh
warm_py() {{ :; }}
configure_offline() {{ :; }}
values() {{ echo "$@"; }}
"""


def test_what_stage_5_left_out_is_looked_at_again_when_stage_4_brings_it_back(tmp_path):
    (tmp_path / "raw" / "train").mkdir(parents=True)
    left = "touch raw/train/.done_tokens; filter_set train {}; ls raw/train/.done_tokens 2>/dev/null || echo gone"
    assert bash(tmp_path, FILTERS + left.format("--llm ''")).stdout.split() == ["gone"]
    assert bash(tmp_path, FILTERS + left.format("--tokenizer tok")).stdout.split() == ["raw/train/.done_tokens"]
    items = "once() { echo \"$*\"; }\nfilter_all .done_tokens --tokenizer tok; filter_all .done --llm ''"
    with_tokens, without = bash(tmp_path, FILTERS + items).stdout.splitlines()[::2]
    assert "tok/tokenizer.json" in with_tokens and "tok/tokenizer.json" not in without


def test_the_language_model_meets_the_rows_that_are_left(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "text").write_text("u1 one row\nu2 a row far too long\n")
    (tmp_path / "raw" / "valid" / "text").write_text("u3 another\n")
    script = "write_words; sed -i /u2/d raw/train/text; write_words; cat tok/text/train.txt tok/text/valid.txt"
    assert bash(tmp_path, FILTERS + script).stdout == "one row\nanother\n"
