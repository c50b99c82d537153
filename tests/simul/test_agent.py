"""BestowAgent under SimulEval itself, run in this process as its command would."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

simuleval_cli = pytest.importorskip("simuleval.cli", reason="SimulEval is not installed (make setup does)")

from simuleval.data.segments import EmptySegment, SpeechSegment  # noqa: E402
from simuleval.utils.agent import EVALUATION_SYSTEM_LIST  # noqa: E402

from espnet_bestow.audio import read_audio  # noqa: E402
from espnet_bestow.bin import simuleval_results  # noqa: E402
from espnet_bestow.datadir.directory import read_table  # noqa: E402
from espnet_bestow.evaluate.instances import read_instances  # noqa: E402
from espnet_bestow.simul import AudioLoader, BestowAgent  # noqa: E402
from tests.simul.scripted import SENTENCE, write_scripted  # noqa: E402

MODEL_RATE = 16000
POLICY = "wait_k:k=2,step=1"
LOADER = ["--dataloader", "bestow", "--dataloader-class", "espnet_bestow.simul.AudioLoader"]
TYPES = ["--source-type", "speech", "--target-type", "text"]


@pytest.fixture(scope="module")
def scripted(tiny, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted(tiny_experiment, tiny.llm, tmp_path_factory.mktemp("scripted"))


@pytest.fixture
def evaluate(scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict]]:
    """Runs simuleval over audio files; the lines of its log."""

    def run(files: list[Path], *options: str, name: str = "out") -> list[dict]:
        (tmp_path / "source").write_text("".join(f"{file}\n" for file in files))
        (tmp_path / "target").write_text("one two three\n" * len(files))
        words = ["--agent-class", "espnet_bestow.simul.BestowAgent", "--bestow-model", str(scripted)]
        words += ["--bestow-policy", POLICY, "--source", str(tmp_path / "source"), "--output", str(tmp_path / name)]
        words += ["--target", str(tmp_path / "target"), "--source-segment-size", "320", "--no-progress-bar"]
        monkeypatch.setattr(sys, "argv", ["simuleval", *words, "--no-scoring", *(options or LOADER)])
        EVALUATION_SYSTEM_LIST.clear()
        simuleval_cli.main()
        lines = (tmp_path / name / "instances.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


@pytest.fixture(scope="module")
def files(tiny) -> list[Path]:
    return [Path(file) for file in list(read_table(tiny.data["train"] / "wav.scp").values())[:4]]


def make_agent(model: Path, **options: object) -> BestowAgent:
    return BestowAgent(SimpleNamespace(bestow_model=str(model), **{"bestow_policy": POLICY, **options}))


def direct(agent: BestowAgent, files: list[Path], segment_ms: int = 320) -> list[list[tuple[str, float]]]:
    """What the model's own sessions say, word by word, each with the milliseconds pushed by then."""
    out = []
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        session, said, size = agent.speech2text.stream(None, "wait_k", k=2, step=1), [], rate * segment_ms // 1000
        for start in range(0, len(samples), size):
            words = session.push(samples[start : start + size], rate)
            if start + size >= len(samples):
                words += session.finish()
            said += [(word.text, min(start + size, len(samples)) * 1000 / rate) for word in words]
        out.append(said)
    return out


def test_simuleval_logs_what_a_session_says_when_it_says_it(evaluate, scripted, files):
    log = evaluate(files)
    expected = direct(make_agent(scripted), files)
    assert [line["index"] for line in log] == [0, 1, 2, 3]
    for line, said in zip(log, expected, strict=True):
        assert line["prediction"] == " ".join(word for word, _ in said) == SENTENCE
        assert line["delays"] == pytest.approx([delay for _, delay in said])
        # Nobody waits for the end, and the last word, which the model wants to end after, waits for it.
        assert line["delays"][0] < line["delays"][-1] == line["source_length"]


def test_simulevals_own_loader_does_as_well(evaluate, files):
    first, second = evaluate(files, name="ours"), evaluate(files, *TYPES, name="theirs")
    for line, other in zip(first, second, strict=True):
        assert [line[key] for key in ("prediction", "delays", "source_length")] == [
            other[key] for key in ("prediction", "delays", "source_length")
        ]


def test_a_killed_run_is_continued_and_logs_become_ours(evaluate, files, tmp_path, capsys):
    whole = evaluate(files, name="whole")
    log = tmp_path / "killed" / "instances.log"
    log.parent.mkdir()
    lines = (tmp_path / "whole" / "instances.log").read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:50])
    # What stage 18 does before it starts a job again.
    subprocess.run(["sed", "-i", "$ { /}$/!d }", log], check=True)
    continued = evaluate(files, *LOADER, "--continue-unfinished", name="killed")
    for line, other in zip(whole, continued, strict=True):
        assert [line[key] for key in ("index", "prediction", "delays")] == [
            other[key] for key in ("index", "prediction", "delays")
        ]
    for name, values in {"key": "abcd", "task": ["asr_de", "ast_en-de"] * 2}.items():
        (tmp_path / name).write_text("".join(f"{value}\n" for value in values))
    options = ["--shards", str(log.parent), "--lists", str(tmp_path), "--policy", POLICY, "--output_dir", str(tmp_path)]
    simuleval_results.main(options)
    # It prints SimulEval's scores, after it has found them equal to ours.
    assert "asr_de: 2 instances  laal " in capsys.readouterr().out
    instances = read_instances(tmp_path / "wait_k_k2_step1" / "ast_en-de" / "instances.log")
    assert [(i.index, i.extra["key"], i.extra["policy"]) for i in instances] == [(1, "b", POLICY), (3, "d", POLICY)]
    (tmp_path / "key").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(SystemExit, match=r"4 instances in 1 logs, .*/key has 5 lines"):
        simuleval_results.main(options)


@pytest.mark.parametrize("segment_ms", ["10", "80", "1700", "60000"])
def test_segments_of_any_length_give_the_same_words(evaluate, files, segment_ms):
    log = evaluate(files[-1:], *LOADER, "--source-segment-size", segment_ms)
    assert log[0]["prediction"] == SENTENCE
    assert log[0]["delays"] == sorted(log[0]["delays"])
    if segment_ms == "60000":
        assert set(log[0]["delays"]) == {log[0]["source_length"]}


def test_a_recording_leaves_nothing_to_the_next_one(evaluate, files):
    forth, back = evaluate(files, name="forth"), evaluate(files[::-1], name="back")
    for line, other in zip(forth, back[::-1], strict=True):
        assert (line["prediction"], line["delays"]) == (other["prediction"], other["delays"])


def test_other_rates_and_channels(evaluate, files, tmp_path):
    samples = read_audio(files[0], 22050)
    variants = {
        "mono": samples,
        "stereo": np.stack([samples, samples], 1),
        "left": np.stack([2 * samples, 0 * samples], 1),
    }
    paths = [tmp_path / f"{name}.wav" for name in variants]
    for path, audio in zip(paths, variants.values(), strict=True):
        soundfile.write(path, audio, 22050, subtype="FLOAT")
    for options in (LOADER, TYPES):
        log = evaluate(paths, *options)
        assert [line["prediction"] for line in log] == [SENTENCE] * 3
        assert log[0]["delays"] == log[1]["delays"] == log[2]["delays"]


def test_stereo_is_averaged_at_its_own_rate(vivid_experiment, files):
    samples = np.random.default_rng(0).normal(size=(7056, 2)).astype(np.float32) * 0.1
    agents = [make_agent(vivid_experiment) for _ in range(2)]
    for agent, content in zip(agents, (samples.tolist(), samples.mean(1).tolist()), strict=True):
        agent.push(SpeechSegment(content=content, sample_rate=22050, finished=False, tgt_lang=None))
        agent.pop()
        assert agent.states.session.seconds == pytest.approx(0.32)
    heard = [agent.states.session.segments[-1].ear for agent in agents]
    assert heard[0].received == heard[1].received > 0
    assert (heard[0].samples() == heard[1].samples()).all()


def test_too_little_audio_is_an_empty_answer_and_a_finished_one(evaluate, files, tmp_path):
    for samples in (1, 100):
        soundfile.write(tmp_path / f"{samples}.wav", np.zeros(samples), MODEL_RATE)
    log = evaluate([tmp_path / "1.wav", files[0], tmp_path / "100.wav", files[1]])
    assert [line["prediction"] for line in log] == ["", SENTENCE, "", SENTENCE]
    assert log[0]["delays"] == []


def test_one_policy_call_per_segment_and_finished_only_at_the_end(scripted, files):
    agent = make_agent(scripted)
    samples = np.tile(read_audio(files[0], MODEL_RATE), 3)  # the model has said everything after the first third
    pieces = np.split(samples, range(1600, len(samples), 1600))
    for number, piece in enumerate(pieces, 1):
        segment = SpeechSegment(
            content=piece.tolist(), sample_rate=MODEL_RATE, finished=number == len(pieces), tgt_lang=None
        )
        assert agent.pushpop(segment).finished == (number == len(pieces))
    assert " ".join(agent.states.target) in SENTENCE
    # SimulEval pops once more where a pipeline asks for it; the answer stays closed.
    assert agent.pop().is_empty
    agent.reset()
    assert agent.states.session is None and agent.states.target == []


def test_a_source_may_end_with_a_segment_of_its_own(scripted, files):
    agent = make_agent(scripted)
    samples = read_audio(files[0], MODEL_RATE)
    first = agent.pushpop(SpeechSegment(content=samples.tolist(), sample_rate=MODEL_RATE, tgt_lang=None))
    last = agent.pushpop(EmptySegment(finished=True))
    assert f"{first.content} {last.content}" == SENTENCE and last.finished
    agent.reset()
    nothing = agent.pushpop(EmptySegment(finished=True))
    assert nothing.finished and nothing.content == ""


def test_states_of_many_sessions_do_not_mix(scripted, files):
    agent = make_agent(scripted)
    samples = read_audio(files[0], MODEL_RATE)
    states = [agent.build_states() for _ in range(3)]
    said: list[list[str]] = [[] for _ in states]
    for start in range(0, len(samples), 4000):
        piece = samples[start : start + 4000]
        finished = start + 4000 >= len(samples)
        for words, one in zip(said, states, strict=True):
            segment = agent.pushpop(
                SpeechSegment(content=piece, sample_rate=MODEL_RATE, finished=finished, tgt_lang=None), one
            )
            words += segment.content.split() if not segment.is_empty else []
    assert [" ".join(words) for words in said] == [SENTENCE] * 3
    assert agent.states.session is None


def test_half_an_hour_is_buffered_in_linear_time_and_little_memory(scripted):
    states = make_agent(scripted).build_states()
    piece = np.zeros(MODEL_RATE * 320 // 1000, np.float32).tolist()
    for number in range(30 * 60 * 1000 // 320):
        states.update_source(SpeechSegment(content=piece, sample_rate=MODEL_RATE, finished=False, tgt_lang=None))
        samples = states.take_audio()
        assert samples.dtype == np.float32 and len(samples) == len(piece), number
    assert states.source == [] and states.take_audio() is None


def test_long_audio_is_read_piece_by_piece(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros((30 * 60 * 100, 2)), 100)
    loader = AudioLoader([str(path)], ["text"])
    audio = loader[0]["source"]
    assert len(audio) == 30 * 60 * 100
    assert audio[5:30].shape == (25, 2) and audio[len(audio) - 3 :].shape == (3, 2)
    assert not hasattr(audio, "samples")
    with pytest.raises(FileNotFoundError, match="source '': no such audio file"):
        AudioLoader([""], ["text"])[0]


def test_models_are_shared_and_options_checked(scripted):
    assert make_agent(scripted).speech2text is make_agent(scripted).speech2text
    for options, message in (
        ({"bestow_modle": 3}, "option bestow_modle is not known; known: bestow_model bestow_prompt"),
        ({"bestow_policy": "wait_k:q=3"}, "policy wait_k: wrong options"),
        ({"bestow_policy": "wait"}, "policy='wait' is not known"),
        ({"bestow_dtype": "int8"}, "bestow_dtype='int8' is not known; known: float32, bfloat16"),
        ({"eval_latency_unit": "spm"}, "bestow_unit='spm' is not known; known: word, char"),
        ({"bestow_context": "70,6"}, r"context=\(70, 6\): TransformerEncoder is not cache-aware"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(scripted, **options)
    with pytest.raises(ValueError, match="the agent needs a model: bestow_model"):
        BestowAgent(SimpleNamespace())


def test_the_prompt_of_a_recording(scripted):
    agent = make_agent(scripted, bestow_prompt="answer this")
    states = agent.build_states()
    assert agent.prompt(states) == "answer this"
    assert make_agent(scripted).prompt(states) == agent.speech2text.default_prompt
    states.update_source(SpeechSegment(content=[0.0], sample_rate=MODEL_RATE, tgt_lang="de"))
    assert agent.prompt(states) == "translate to german"
    states.tgt_lang = "write down the english speech"
    assert agent.prompt(states) == "write down the english speech"
    states.tgt_lang = "qq"
    with pytest.raises(ValueError, match="unknown language 'qq'"):
        agent.prompt(states)


def test_characters_and_reduced_precision(scripted, files):
    agent = make_agent(scripted, latency_unit="char", bestow_dtype="bfloat16")
    samples = read_audio(files[0], MODEL_RATE)
    segment = agent.pushpop(SpeechSegment(content=samples, sample_rate=MODEL_RATE, finished=True, tgt_lang=None))
    assert segment.content == SENTENCE.replace(" ", "")


def test_a_bad_sample_is_an_error_with_its_place(scripted):
    agent = make_agent(scripted)
    with pytest.raises(ValueError, match=r"samples after 0.000 s are NaN or infinite: 1 of 3"):
        agent.pushpop(SpeechSegment(content=[0.0, float("nan"), 0.0], sample_rate=MODEL_RATE, tgt_lang=None))


class Wrapper:
    """What simulstream 1.0 does with an agent, as its documentation and its own tests say."""

    def __init__(self, config: SimpleNamespace):
        config.source_segment_size, config.device = config.speech_chunk_size * 1000, "cpu"
        self.agent, self.text = BestowAgent(config), ""

    def chunk(self, samples: np.ndarray) -> None:
        self.agent.states.update_source(
            SpeechSegment(content=samples.tolist(), sample_rate=16000, finished=False, tgt_lang=self.agent.tgt_lang)
        )
        self._act()

    def end_of_stream(self) -> None:
        self.agent.states.source_finished = True
        self._act()
        self.agent.reset()

    def _act(self) -> None:
        action = self.agent.policy(self.agent.states)
        if not action.is_read():
            self.text += " " + action.content


def test_simulstreams_wrapper_is_served(scripted, files):
    config = SimpleNamespace(
        speech_chunk_size=0.32, latency_unit="word", bestow_model=str(scripted), bestow_policy=POLICY,
        type="simulstream...SimulEvalWrapper", detokenizer_type="simuleval",
    )  # fmt: skip
    wrapper = Wrapper(config)
    wrapper.agent.tgt_lang = "de"
    for _ in range(2):
        wrapper.text = ""
        samples = read_audio(files[0], 16000)
        for start in range(0, len(samples), 5120):
            wrapper.chunk(samples[start : start + 5120])
        wrapper.end_of_stream()
        assert wrapper.text.split() == SENTENCE.split()
        assert wrapper.agent.states.session is None


def test_the_real_wrapper_is_served(scripted, files):
    wrapper = pytest.importorskip(
        "simulstream.server.speech_processors.simuleval_wrapper", reason="simulstream is not installed"
    )
    processor = wrapper.SimulEvalWrapper(
        SimpleNamespace(
            simuleval_agent="espnet_bestow.simul.BestowAgent", speech_chunk_size=0.32, latency_unit="word",
            detokenizer_type="simuleval", bestow_model=str(scripted), bestow_policy=POLICY,
        )
    )  # fmt: skip
    processor.set_target_language("de")
    samples = read_audio(files[0], 16000)
    for _ in range(2):
        outputs = [processor.process_chunk(samples[start : start + 5120]) for start in range(0, len(samples), 5120)]
        outputs.append(processor.end_of_stream())
        assert [word for output in outputs for word in output.new_tokens] == SENTENCE.split()
        assert outputs[1].new_tokens, "the first words come while audio does"
        processor.clear()
