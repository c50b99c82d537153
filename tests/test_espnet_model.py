"""The loss and everything reported with it, against the same numbers written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.frontend.windowing import SlidingWindow
from espnet2.asr.postencoder.length_adaptor_postencoder import LengthAdaptorPostEncoder
from espnet2.asr.preencoder.linear import LinearProjection
from espnet2.asr.preencoder.sinc import LightweightSincConvs
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.utterance_mvn import UtteranceMVN
from torch import nn

from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.encoders.chain import EncoderChain
from espnet_bestow.encoders.features import SILENCE, Features
from espnet_bestow.encoders.log_mel import NativeLogMel
from espnet_bestow.errors import BadRowError, BadUtteranceError
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.losses import ctc_losses, too_long
from espnet_bestow.model import ModelState
from espnet_bestow.rows import join, recordings
from espnet_bestow.visibility import OfflinePolicy, WaitKPolicy, answer_index, offline
from tests.llm_fixtures import write_llm

WINDOW, D_ENC = 4, 6
TASKS = ("asr", "sqa", "ast")


class FrameEncoder(nn.Module):
    """Every 4 samples are a frame; counts what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WINDOW, D_ENC)
        self.rows = 0

    def forward(self, waveform, lengths):
        self.rows += len(waveform)
        frames = lengths // WINDOW
        windows = waveform[:, : int(frames.max()) * WINDOW].unflatten(1, (-1, WINDOW))
        return torch.tanh(self.linear(windows)), frames, None


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return CausalLM(str(write_llm(tmp_path_factory.mktemp("llm"))))


def build(llm, policy=None, **options):
    torch.manual_seed(1)
    connector = CrossAttentionConnector(llm.width, D_ENC, dim=16, num_heads=2, dropout=0.0)
    ctc = nn.Linear(D_ENC, 11) if options.get("ctc_weight") else None
    policy = policy or OfflinePolicy()
    return ESPnetBestowModel(Features(), FrameEncoder(), connector, llm, policy, ctc, tasks=TASKS, **options).eval()


PROMPTS = [[1, 9, 10, 11], [1, 9], [1, 20, 21]]
ANSWERS = [[30, 2], [31, 32, 33, 34, 2], [35, 36, 2]]
TRANSCRIPTS = [[4, 5], [6], [7, 7, 8]]
SAMPLES = [24, 40, 32]


class TwoFramesBefore(nn.Module):
    """Silence of a known length."""

    def forward(self, waveform, lengths):
        return F.pad(waveform, (2 * WINDOW, 0)), lengths + 2 * WINDOW, torch.full_like(lengths, 2 * WINDOW)


def padded(rows):
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, True, -1), torch.tensor([len(row) for row in rows])


def batch(rows=(0, 1, 2)):
    torch.manual_seed(0)
    audio = [torch.randn(n) for n in SAMPLES]
    chosen = [audio[r] for r in rows]
    out = {
        "speech": nn.utils.rnn.pad_sequence(chosen, True),
        "speech_lengths": torch.tensor([len(a) for a in chosen]),
        "task": torch.tensor([[r % 2] for r in rows]),
    }
    for name, source in (("prompt", PROMPTS), ("text", ANSWERS), ("src_text", TRANSCRIPTS)):
        out[name], out[f"{name}_lengths"] = padded([source[r] for r in rows])
    return out


def written_out(model, row, smoothing=0.0):
    """Losses of one utterance's answer tokens, without padding, batching or join."""
    one = batch([row])
    speech = model.encode(one["speech"], one["speech_lengths"])
    ids = torch.tensor([PROMPTS[row] + ANSWERS[row]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    index = answer_index(mask, torch.tensor([len(PROMPTS[row])]))
    visible = model.policy.rule(1)(index, mask, speech.lengths)
    logp = model.teacher_forced(speech, ids, mask, visible)[0].log_softmax(-1)
    losses, correct = [], 0
    for n, token in enumerate(ANSWERS[row]):
        predicted = logp[len(PROMPTS[row]) - 1 + n]
        losses.append(float(-(1 - smoothing) * predicted[token] - smoothing * predicted.mean()))
        correct += int(predicted.argmax()) == token
    return losses, correct


def test_join_by_hand():
    prompt, prompt_lengths = padded([[1, 2, 3], [4]])
    text, text_lengths = padded([[5, 6], [7, 8, 9]])
    ids, mask = join(prompt, prompt_lengths, text, text_lengths)
    # The last answer token predicts nothing and is left out.
    assert ids.tolist() == [[1, 2, 3, 5], [4, 7, 8, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, True, False]]


def test_join_of_an_answer_that_is_only_the_end_token():
    ids, mask = join(torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([[9]]), torch.tensor([1]))
    assert ids.tolist() == [[1, 2]] and mask.all()


@torch.no_grad()
@pytest.mark.parametrize("policy", [OfflinePolicy(), WaitKPolicy(k=2, step=1)], ids=["offline", "wait-k"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_answer_tokens(llm, smoothing, policy):
    model = build(llm, policy, lsm_weight=smoothing)
    loss, stats, weight = model(**batch())
    each = [written_out(model, row, smoothing) for row in range(3)]
    tokens = sum(map(len, ANSWERS))
    assert float(weight) == tokens
    assert float(loss) == pytest.approx(sum(sum(losses) for losses, _ in each) / tokens, rel=1e-4)
    assert float(stats["acc"]) == pytest.approx(sum(correct for _, correct in each) / tokens)
    assert float(stats["loss"]) == float(loss) == float(stats["loss_llm"])


@torch.no_grad()
def test_only_frames_that_some_answer_may_see_are_projected(llm, monkeypatch):
    model = build(llm, WaitKPolicy(k=2, step=1))
    projected = []
    start = model.connector.start
    monkeypatch.setattr(model.connector, "start", lambda speech: projected.append(speech) or start(speech))
    data = batch()
    model(**data)
    everything = model.encode(data["speech"], data["speech_lengths"])
    longest = max(map(len, ANSWERS))
    assert projected[0].frames.shape[1] == longest - 1 + 2 < everything.frames.shape[1]
    assert projected[0].frames.equal(everything.frames[:, : longest + 1])
    assert projected[0].lengths.tolist() == everything.lengths.clamp(max=longest + 1).tolist()


@torch.no_grad()
def test_losses_per_task(llm):
    model = build(llm)
    _, stats, _ = model(**batch())
    sums = [written_out(model, row)[0] for row in range(3)]
    both = sums[0] + sums[2]  # rows 0 and 2 are task 0
    assert float(stats["loss_asr"]) == pytest.approx(sum(both) / len(both), rel=1e-4)
    assert float(stats["loss_sqa"]) == pytest.approx(sum(sums[1]) / len(sums[1]), rel=1e-4)
    assert math.isnan(float(stats["loss_ast"])), "absent in the batch"


@torch.no_grad()
def test_losses_per_task_need_the_task(llm):
    data = batch()
    del data["task"]
    _, stats, _ = build(llm)(**data)
    assert not any(name.removeprefix("loss_") in TASKS for name in stats)


@torch.no_grad()
def test_the_answers_of_a_task_count_as_its_weight_says(llm):
    model = build(llm, task_weights={"asr": 3.0})
    loss, stats, tokens = model(**batch())
    asr, sqa, also_asr = (sum(written_out(model, row)[0]) for row in range(3))
    assert float(loss) == pytest.approx((3 * (asr + also_asr) + sqa) / float(tokens), rel=1e-4)
    assert float(stats["loss_asr"]) == pytest.approx((asr + also_asr) / (len(ANSWERS[0]) + len(ANSWERS[2])), rel=1e-4)
    assert not any("task_weights" in name for name in model.state_dict()), "a checkpoint fits other weights"


def test_a_task_of_weight_0_teaches_nothing(llm):
    model = build(llm, task_weights={"sqa": 0.0})
    loss, _, _ = model(**batch([1]))
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ast_xy": 2.0}, "task_weights names ast_xy; the data has asr, sqa, ast"),
        ({"asr": -1.0}, "task_weights: asr: -1.0"),
        ({"asr": math.nan}, "task_weights: asr: nan"),
    ],
)
def test_weights_that_make_no_sense_are_named(llm, weights, message):
    with pytest.raises(ValueError, match=message):
        build(llm, task_weights=weights)


@torch.no_grad()
def test_ctc_joins_the_loss_with_its_weight(llm):
    model = build(llm, ctc_weight=0.3)
    loss, stats, tokens = model(**batch())
    each = []
    for row in range(3):
        one = batch([row])
        speech = model.encode(one["speech"], one["speech_lengths"])
        logp = model.ctc(speech.frames).log_softmax(-1)[0]
        target = torch.tensor(TRANSCRIPTS[row])
        each.append(F.ctc_loss(logp, target, (len(logp),), (len(target),), blank=10, reduction="sum"))
    assert float(stats["loss_ctc"]) == pytest.approx(float(sum(each) / tokens), rel=1e-4)
    assert float(loss) == pytest.approx(float(0.3 * stats["loss_ctc"] + 0.7 * stats["loss_llm"]), rel=1e-5)


def test_ctc_counts_a_recording_as_often_as_it_has_rows(llm):
    model = build(llm, ctc_weight=0.3)
    found = []
    for rows in ([0, 1, 1, 1], [1, 0, 1, 1]):  # neighbours share an encoding
        loss, stats, _ = model(**batch(rows))
        model.zero_grad()
        loss.backward()
        found.append([loss, stats["loss_ctc"], model.ctc.weight.grad, model.encoder.linear.weight.grad])
    torch.testing.assert_close(*found)


def test_a_transcript_without_alignment_contributes_nothing():
    """Six labels do not fit into four frames; the other utterance is unharmed, and so are the gradients."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 9, requires_grad=True)
    target, lengths = padded([[1, 2], [1, 2, 3, 4, 5, 6]])
    both = ctc_losses(logits, torch.tensor([4, 4]), target, lengths)
    alone = ctc_losses(logits[:1], torch.tensor([4]), target[:1], lengths[:1])
    assert both.tolist() == [pytest.approx(float(alone)), 0.0] and float(alone) > 0
    both.sum().backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[1] == 0).all() and (logits.grad[0] != 0).any()


def test_encoder_pretraining_needs_no_llm():
    model = ESPnetBestowModel(
        Features(), FrameEncoder(), None, None, OfflinePolicy(), nn.Linear(D_ENC, 11), ctc_weight=1.0
    )
    loss, stats, _ = model(**batch())
    loss.backward()
    assert set(stats) == {"loss", "loss_ctc", "ctc_too_long"}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_ctc_without_transcripts_is_named(llm):
    data = batch()
    del data["src_text"]
    with pytest.raises(ValueError, match=r"ctc_weight=0.3 needs the data name src_text"):
        build(llm, ctc_weight=0.3)(**data)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_ctc_weight_out_of_range_is_named(llm, weight):
    with pytest.raises(ValueError, match=f"ctc_weight={weight} must be between 0 and 1"):
        build(llm, ctc_weight=weight)


@torch.no_grad()
def test_neighbours_about_one_recording_are_encoded_once(llm):
    model = build(llm)
    a, b = torch.randn(24), torch.randn(24)
    cut = torch.cat([a[:20], torch.zeros(4)])
    speech = torch.stack([a, a, a, b, cut, cut])
    lengths = torch.tensor([24, 24, 24, 24, 24, 20])  # the last two differ in length only
    first, recording = recordings(speech, lengths)
    assert first.tolist() == [0, 3, 4, 5] and recording.tolist() == [0, 0, 0, 1, 2, 3]
    words = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 3], [1, 3], [1, 3]])  # what was said decides too
    first, recording = recordings(speech, lengths, words)
    assert first.tolist() == [0, 2, 3, 4, 5] and recording.tolist() == [0, 0, 1, 2, 3, 4]
    data = batch([0, 0, 1])
    model(**data)
    assert model.encoder.rows == 2


def test_sharing_a_recording_keeps_the_gradient(llm):
    """The gradient of the shared encoding is the sum of what the rows send back."""
    model = build(llm)
    data = batch([0, 0])
    data["text"], data["text_lengths"] = padded([ANSWERS[0], ANSWERS[1]])
    model(**data)[0].backward()
    shared = model.encoder.linear.weight.grad.clone()
    model.zero_grad()
    model.encoder.rows = 0
    encode = model.encode(data["speech"], data["speech_lengths"])
    args = (data[name] for name in ("prompt", "prompt_lengths", "text", "text_lengths"))
    state = ModelState(model.connector.start(encode), None)
    (model._answer_losses(state, offline, encode.lengths, *args)[0].sum() / data["text_lengths"].sum()).backward()
    assert model.encoder.rows == 2
    torch.testing.assert_close(shared, model.encoder.linear.weight.grad, rtol=1e-4, atol=1e-6)


def test_errors_about_rows_name_the_utterance(llm, monkeypatch):
    model = build(llm)
    data = batch([0, 0, 1])  # two recordings

    def refuse_the_last(waveform, lengths):
        raise BadRowError(len(lengths) - 1, "too much of it")

    monkeypatch.setattr(model, "encode", refuse_the_last)
    with pytest.raises(BadUtteranceError, match=r"^utterance 'c': too much of it"):
        model(**data, utt_id=["a", "b", "c"])
    with pytest.raises(BadRowError, match=r"^row 1 of the batch: too much of it"):
        model(**data)
    monkeypatch.undo()

    def refuse_the_second(*_):
        raise BadRowError(1, "too long")

    monkeypatch.setattr(model, "step", refuse_the_second)
    with pytest.raises(BadUtteranceError, match=r"^utterance 'b': too long"):
        model(**data, utt_id=["a", "b", "c"])


def features():
    torch.manual_seed(0)
    return Features(
        DefaultFrontend(fs=16000, n_fft=128, hop_length=64, n_mels=10),
        SpecAug(apply_time_warp=False, freq_mask_width_range=(2, 4), time_mask_width_range=(2, 5)),
        UtteranceMVN(),
        LinearProjection(input_size=10, output_size=4),
    )


@torch.no_grad()
def test_features_follow_the_order_of_espnet():
    chain = features()
    waveform, lengths = torch.randn(2, 3000), torch.tensor([2000, 1500])
    waveform[1, 1500:] = 0.0
    plain, n = chain.frontend(F.pad(waveform[:, :2000], (0, SILENCE)), lengths)
    plain = plain[:, : int(n.max())]
    expected, _ = chain.preencoder(*chain.normalize(plain.clone(), n))
    got, got_lengths = chain.eval()(waveform, lengths)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(got_lengths, n)

    torch.manual_seed(5)
    augmented, _ = chain.train()(waveform, lengths)
    torch.manual_seed(5)
    masked, _ = chain.specaug(plain.clone(), n)
    expected, _ = chain.preencoder(*chain.normalize(masked, n))
    torch.testing.assert_close(augmented, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(augmented, got), "SpecAugment belongs to training"


@torch.no_grad()
def test_statistics_are_of_features_before_augmentation_and_normalisation(llm):
    model = build(llm)
    model.features = features()
    waveform, lengths = torch.randn(2, 2000), torch.tensor([2000, 1500])
    waveform[1, 1500:] = 0.0
    found = model.train().collect_feats(speech=waveform, speech_lengths=lengths, text=torch.zeros(2, 1))
    plain, n = model.features.frontend(F.pad(waveform, (0, SILENCE)), lengths)
    torch.testing.assert_close(found["feats"], plain[:, : int(n.max())], rtol=1e-4, atol=1e-4)
    assert torch.equal(found["feats_lengths"], n)


@torch.no_grad()
@pytest.mark.parametrize("postencoder", [None, LengthAdaptorPostEncoder(8, length_adaptor_n_layers=1)])
def test_an_encoder_with_intermediate_outputs_is_read_at_its_end(llm, postencoder):
    torch.manual_seed(0)
    options = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2, "input_layer": "linear"}
    encoder = TransformerEncoder(5, **options, interctc_layer_idx=[1]).eval()
    plain = TransformerEncoder(5, **options).eval()
    plain.load_state_dict(encoder.state_dict())
    chains = [part if postencoder is None else EncoderChain(part, postencoder.eval()) for part in (encoder, plain)]
    waveform, lengths = torch.randn(2, 12, 5), torch.tensor([12, 9])
    outputs = []
    for chain in chains:
        model = ESPnetBestowModel(Features(), chain, CrossAttentionConnector(32, 8, 16, 1, 2), llm, OfflinePolicy())
        outputs.append(model.eval().encode(waveform, lengths))
    torch.testing.assert_close(outputs[0].frames, outputs[1].frames)
    assert torch.equal(outputs[0].lengths, outputs[1].lengths)


def test_features_have_a_gradient_where_it_is_asked_for():
    waveform = torch.randn(1, 2000, requires_grad=True)
    feats, _ = features().extract(waveform, torch.tensor([2000]))
    feats.sum().backward()
    assert waveform.grad.abs().max() > 0.0


@pytest.mark.parametrize("kernel", [False, True])
def test_features_of_a_batch_are_those_of_its_members(kernel, monkeypatch):
    """ESPnet's frontend alone mirrors at the end of the padding."""
    if not kernel:
        monkeypatch.setattr(NativeLogMel, "fits", lambda frontend: False)
    torch.manual_seed(0)
    features = Features(DefaultFrontend(fs="16k", n_fft=512, win_length=400, hop_length=160))
    lengths = torch.tensor([8000, 5000, 7000])
    waveform = torch.randn(3, 8000) * (torch.arange(8000) < lengths[:, None])
    together, n = features(waveform, lengths)
    for row in range(3):
        alone, m = features(waveform[row : row + 1, : int(lengths[row])], lengths[row : row + 1])
        assert n[row] == m[0]
        torch.testing.assert_close(together[row, : int(n[row])], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_espnets_sinc_takes_the_windows_of_a_batch():
    """It wants frames that lie one behind the other in memory, which a part of them does not."""
    features = Features(SlidingWindow(400, 160), preencoder=LightweightSincConvs(out_channels=128)).eval()
    lengths = torch.tensor([2000, 1500])
    feats, counts = features(torch.randn(2, 2000), lengths)
    assert feats.shape == (2, int(counts.max()), 128)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_as_exact_under_autocast(dtype, monkeypatch):
    monkeypatch.setattr(NativeLogMel, "fits", lambda frontend: False)
    chain = features().eval()
    chain.preencoder = None
    waveform, lengths = torch.randn(1, 2000) * torch.linspace(0.0, 1.0, 2000), torch.tensor([2000])
    expected, _ = chain(waveform, lengths)
    with torch.autocast("cpu", dtype=dtype):
        got, _ = chain(waveform, lengths)
    assert torch.equal(got, expected)


def test_targets_longer_than_their_frames_are_counted():
    target = torch.tensor([[5, 6, 7, -1], [5, 5, 6, 6], [5, 5, 5, -1]])
    lengths = torch.tensor([3, 4, 2])
    # the second needs a blank between equal tokens: 6 frames
    assert too_long(torch.tensor([3, 5, 3]), target, lengths).tolist() == [False, True, False]


def test_a_batch_without_any_transcribed_word_trains_all_the_same(llm):
    data = batch() | {"src_text": torch.zeros(3, 0, dtype=torch.long), "src_text_lengths": torch.zeros(3).long()}
    loss, stats, _ = build(llm, ctc_weight=0.3)(**data)
    loss.backward()
    assert torch.isfinite(loss) and stats["ctc_too_long"] == 0


def test_wait_k_begins_behind_the_silence_of_training(llm):
    model = build(llm, WaitKPolicy(k=1, step=1)).train()
    model.features.silence = TwoFramesBefore()
    data = batch()
    loss, _, _ = model(**data)
    other = build(llm, WaitKPolicy(k=3, step=1))
    speech, lengths, _ = TwoFramesBefore()(data["speech"], data["speech_lengths"])
    expected, _, _ = other(**{**data, "speech": speech, "speech_lengths": lengths})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
