"""RunningMVN normalises with the past only, and a stream of it equals the whole pass."""

import numpy as np
import pytest
import torch

from espnet_bestow.encoders import RunningMVN


def feats(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape) * 3.0 - 9.0


def test_equals_moments_of_the_frames_so_far():
    x = feats(1, 30, 4)
    out, _ = RunningMVN(prior_mean=-7.0, prior_std=3.0, prior_frames=5.0)(x, torch.tensor([30]))
    for t in (0, 7, 29):
        count = 5.0 + t + 1
        mean = (5.0 * -7.0 + x[0, : t + 1].sum(0)) / count
        square = (5.0 * (9.0 + 49.0) + x[0, : t + 1].square().sum(0)) / count
        torch.testing.assert_close(out[0, t], (x[0, t] - mean) / (square - mean.square()).sqrt(), rtol=1e-4, atol=1e-4)


def test_pseudo_frames_of_the_training_data(tmp_path):
    seen = (feats(500, 4) + torch.tensor([4.0, 2.0, 0.0, -3.0])).double()
    counted = {"count": len(seen), "sum": seen.sum(0).numpy(), "sum_square": seen.square().sum(0).numpy()}
    np.savez(tmp_path / "feats_stats.npz", **counted)
    x = feats(1, 3, 4)
    out, _ = RunningMVN(tmp_path / "feats_stats.npz", prior_frames=1e6)(x, torch.tensor([3]))
    expected = (x - seen.mean(0)) / seen.std(0, correction=0)  # with so many pseudo-frames, global_mvn
    torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-3)
    # In single-bin terms they are what prior_mean and prior_std say.
    alike = RunningMVN(prior_mean=float(seen[:, 1].mean()), prior_std=float(seen[:, 1].std(correction=0)))
    torch.testing.assert_close(
        RunningMVN(tmp_path / "feats_stats.npz")(x, torch.tensor([3]))[0][..., 1],
        alike(x, torch.tensor([3]))[0][..., 1],
        rtol=0,
        atol=1e-5,
    )


def test_the_future_changes_nothing():
    x = feats(1, 40, 4)
    changed = x.clone()
    changed[:, 25:] += 5.0
    normalize = RunningMVN()
    before, after = (normalize(each, torch.tensor([40]))[0] for each in (x, changed))
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("cuts", [[1] * 40, [7, 13, 20], [40]])
def test_stream_equals_whole_pass(cuts):
    x = feats(2, 40, 4)
    normalize = RunningMVN()
    past, parts = normalize.start(2, 4), []
    for part in x.split(cuts, dim=1):
        out, past = normalize.advance(part, past)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), normalize(x, torch.tensor([40, 40]))[0], rtol=0, atol=1e-6)


def test_what_specaugment_blanks_does_not_count():
    x = feats(1, 40, 4)
    blanked = x.clone()
    blanked[:, 10:15] = 0.0  # a time mask
    blanked[:, :, 2] = 0.0  # a frequency mask
    out, _ = RunningMVN()(blanked, torch.tensor([40]))
    assert not out[:, 10:15].any()
    assert not out[:, :, 2].any()
    kept = [t for t in range(40) if not 10 <= t < 15]
    expected, _ = RunningMVN()(x[:, kept], torch.tensor([35]))
    for column in (0, 1, 3):
        torch.testing.assert_close(out[:, kept, column], expected[:, :, column])


def test_rows_of_a_stream_may_advance_differently():
    x = feats(2, 10, 4)
    normalize = RunningMVN()
    _, past = normalize.advance(x, normalize.start(2, 4), torch.tensor([10, 3]))
    _, alone = normalize.advance(x[1:, :3], normalize.start(1, 4))
    torch.testing.assert_close(past[1:], alone)


def test_hours_add_up():
    normalize = RunningMVN()
    _, past = normalize.advance(feats(1, 200_000, 2), normalize.start(1, 2))
    last, _ = normalize.advance(feats(1, 1, 2), past)
    torch.testing.assert_close(last[0, 0], (feats(1, 1, 2)[0, 0] + 9.0) / 3.0, rtol=0, atol=0.02)


def test_batch_gives_what_members_give_alone_and_padding_is_zero():
    x, lengths = feats(2, 30, 4), torch.tensor([30, 12])
    normalize = RunningMVN()
    out, same = normalize(x, lengths)
    assert same.tolist() == [30, 12]
    assert not out[1, 12:].any()
    torch.testing.assert_close(out[1:, :12], normalize(x[1:, :12], lengths[1:])[0])


def test_level_of_the_recording_is_forgotten():
    x = feats(1, 2000, 4)
    normalize = RunningMVN()
    quiet, loud = (normalize(x + level, torch.tensor([2000]))[0][:, 1000:] for level in (0.0, 3.0))
    assert (quiet - loud).abs().max() < 0.1


def test_digital_silence_is_finite():
    out, _ = RunningMVN()(torch.full((1, 50, 4), -23.0), torch.tensor([50]))
    assert out.isfinite().all()


@pytest.mark.parametrize("conf", [{"prior_frames": 0.0}, {"prior_std": -1.0}])
def test_bad_prior(conf):
    with pytest.raises(ValueError, match=str(next(iter(conf.values())))):
        RunningMVN(**conf)
