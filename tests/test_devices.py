"""Nothing is left on the CPU: training, decoding and sessions elsewhere say what they say here.

On the far device, which pretends (see far_device.py), and on a GPU where there is one.
"""

from contextlib import contextmanager

import pytest
import torch

from espnet_bestow.bin.merge_configs import read_yaml
from espnet_bestow.connectors import Speech
from espnet_bestow.decoding import Stepper
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.session import SessionOptions
from espnet_bestow.task import BestowTask
from espnet_bestow.visibility import WaitKPolicy, offline
from tests.egs2.test_configs import VARIANTS, arguments
from tests.far_device import TwoDevicesError, far_device
from tests.llm_fixtures import write_llm
from tests.streaming_fixtures import PROMPT, talk
from tests.test_model import CONNECTOR_CONFIGURATIONS, STAIRCASE, batch, build, teacher_forced
from tests.test_streaming_training import CACHE_AWARE, CONTEXTUAL_BLOCK
from tests.tiny_training import make_vivid, train

ELSEWHERE = ["far", pytest.param("cuda", marks=pytest.mark.gpu)]
POLICIES = {
    "wait_k": {"k": 2, "step": 2},
    "align_att": {"threshold": 4, "step": 2},
    "local_agreement": {"n": 2, "step": 16},
}
ENCODERS = {
    "recomputed": {},
    "cache-aware": {**CACHE_AWARE, "normalize": "running_mvn"},
    "contextual block": {**CONTEXTUAL_BLOCK, "normalize": "running_mvn"},
}
EXAMPLES = {"streaming_fastconformer": []} | {path.stem: [path] for path in VARIANTS if "encoder" in read_yaml(path)}
"""What each encoder of the mini recipe changes in its configuration."""


@contextmanager
def elsewhere(device):
    """The device's name; its arithmetic is that of float32."""
    if device == "far":
        with far_device() as name:
            yield name
    else:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield device


def leave_out_recurrent(recurrent, device):
    if recurrent and device == "far":
        pytest.skip("elsewhere PyTorch's GRU and LSTM are kernels that the CPU lacks")


@pytest.fixture(scope="module")
def llm_path(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


def test_the_far_device_does_not_mix_with_the_cpu():
    with far_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device.type == device and (there + 1.0).tolist() == [2.0] * 3
        assert there[torch.tensor([0, 2])].cpu().tolist() == [1.0, 1.0]  # as a GPU: indices may be here
        assert torch.tensor([1, 2], device=device).device.type == device
        for mix in (torch.add, torch.maximum, lambda *both: torch.cat(both)):
            with pytest.raises(TwoDevicesError, match="on the CPU"):
                mix(there, here)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        with torch.inference_mode(), torch.inference_mode():
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("configuration", CONNECTOR_CONFIGURATIONS)
def test_every_connector_learns_and_writes(llm_path, configuration, device):
    leave_out_recurrent(configuration == "recurrent", device)

    def run(name):
        model = build(llm_path, configuration).to(name)
        rule = WaitKPolicy(k=2, step=2).rule(2, name) if configuration in STAIRCASE else offline
        speech, prompts, answers = batch()
        speech = Speech(speech.frames.to(name), speech.lengths.to(name))
        logp = teacher_forced(model, speech, prompts, answers, rule)
        logp.square().mean().backward()
        gradients = [p.grad.cpu() for p in model.connector.parameters() if p.grad is not None]
        stepper = Stepper(model, speech, prompts, rule)
        stepper.write(torch.tensor([11, 15], device=name))
        return [logp.detach().cpu(), *gradients, stepper.logp.cpu()]

    here = run("cpu")
    with elsewhere(device) as name:
        there = run(name)
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("encoder", EXAMPLES)
def test_every_encoder_of_the_mini_recipe_hears(encoder, llm_path, tmp_path, device):
    leave_out_recurrent(encoder == "vgg_rnn", device)
    model = BestowTask.build_model(arguments(llm_path, tmp_path, *EXAMPLES[encoder])).eval()
    audio = [torch.from_numpy(talk(seconds)) for seconds in (1.0, 0.6)]
    waveform, lengths = torch.nn.utils.rnn.pad_sequence(audio, True), torch.tensor([len(each) for each in audio])
    here = model.encode(waveform, lengths).rows()
    with elsewhere(device) as name:
        there = [row.cpu() for row in model.to(name).encode(waveform.to(name), lengths.to(name)).rows()]
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def experiments(tiny, tmp_path_factory):
    """A model for each encoder that says something else about everything it hears."""
    root, found = tmp_path_factory.mktemp("devices"), {}
    for name, conf in ENCODERS.items():
        exp = train(tiny, root / name, **conf)
        found[name] = root / f"vivid {name}"
        make_vivid(exp / "valid.loss.best.pth", tiny.llm, found[name])
    return found


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_answers(experiments, encoder, beam_size, device):
    def run(name):
        options = DecodingOptions(beam_size=beam_size, max_tokens=12)
        s2t = Speech2Text.from_pretrained(experiments[encoder], options, name)
        results = [s2t(talk(0.8 + 0.4 * n, n)) for n in range(2)]
        return [result.text for result in results], [result.score for result in results]

    texts, scores = run("cpu")
    assert all(texts) and scores[0] != scores[1]
    with elsewhere(device) as name:
        assert run(name) == (texts, pytest.approx(scores, rel=1e-3))


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_sessions(experiments, encoder, device):
    def run(name):
        s2t = Speech2Text.from_pretrained(experiments[encoder], device=name)
        pool = s2t.pool(s2t.listener())
        options = SessionOptions(max_tokens=5)
        sessions = [pool.open(PROMPT, build_policy(policy, **conf), options) for policy, conf in POLICIES.items()]
        for n, session in enumerate(sessions):
            for piece in talk(0.8, n).reshape(-1, 6400):
                session.feed(piece)
                pool.step()
            session.end()
        while pool.step():
            pass
        return [[(word.text, word.span, word.visible) for word in session.take()] for session in sessions]

    here = run("cpu")
    assert all(here)
    with elsewhere(device) as name:
        assert run(name) == here


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("encoder", ["recomputed", "cache-aware"])
def test_a_training_step(tiny, experiments, tmp_path, monkeypatch, encoder, device):
    """With all that a loss can have: silence, masks, chunks drawn anew, CTC, taught attention, a teacher, weights."""
    seen = []
    forward = ESPnetBestowModel.forward
    monkeypatch.setattr(ESPnetBestowModel, "forward", lambda self, **b: seen.append((self, b)) or forward(self, **b))
    exp = train(
        tiny,
        tmp_path / "exp",
        max_epoch=1,
        specaug="specaug",
        specaug_conf={"apply_time_warp": False, "time_mask_width_range": [0, 5]},
        silence="around",
        policy="wait_k",
        policy_conf={"k": [1, 3], "step": 2},
        model_conf={
            "ctc_weight": 0.2,
            "alignment_weight": 0.5,
            "task_weights": {"asr_en": 2.0},
            "teacher": str(experiments[encoder]),
        },
        **ENCODERS[encoder],
    )
    model, data = seen[0]
    said = data["src_text"][:, :2]  # few enough for CTC to find them in recordings as short as these
    data |= {"src_text": said, "text": torch.nn.functional.pad(said, (0, 1), value=2)}
    data |= {f"{name}_lengths": torch.full((len(said),), data[name].shape[1]) for name in ("src_text", "text")}

    def run(name):
        model.load_state_dict(torch.load(exp / "1epoch.pth", weights_only=True))
        model.train().to(name).zero_grad()
        torch.manual_seed(0)
        moved = {key: value.to(name) if isinstance(value, torch.Tensor) else value for key, value in data.items()}
        loss, stats, weight = model(**moved)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return {key: float(value) for key, value in {**stats, "norm": norm, "weight": weight}.items()}

    here = run("cpu")
    assert all(here[f"loss_{part}"] > 0 for part in ("ctc", "align", "teacher", "llm"))
    with elsewhere(device) as name:
        assert run(name) == pytest.approx(here, rel=1e-3, nan_ok=True)
