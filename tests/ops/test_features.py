"""Log-mel and running normalisation natively: as exact as PyTorch, on every instruction set."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_bestow import ops
from espnet_bestow.encoders import RunningMVN
from espnet_bestow.encoders.log_mel import NativeLogMel
from espnet_bestow.encoders.running_mvn import SMALLEST_VARIANCE
from espnet_bestow.streaming.features import LogMel
from tests.ops.instruction_sets import ISAS, run_with

pytestmark = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")

SIZES = [(32, 32, 16, 5), (64, 50, 20, 7), (512, 400, 160, 80), (1024, 800, 256, 40)]  # N, window, hop, bins


def frontend(size: int, win: int, hop: int, bins: int, **conf) -> DefaultFrontend:
    return DefaultFrontend(fs=16000, n_fft=size, win_length=win, hop_length=hop, n_mels=bins, **conf).eval()


def signals(samples: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    time = torch.arange(samples) / 16000
    return {
        "noise": 0.1 * torch.randn(samples),
        "faint": 1e-4 * torch.randn(samples),
        "tone": torch.sin(6000 * time),
        "chirp": torch.sin(20_000 * time**2),
        "slope": torch.linspace(-1, 1, samples) ** 3,
        "silence": torch.zeros(samples),
    }


def exact(front: DefaultFrontend, audio: torch.Tensor, frames: int) -> torch.Tensor:
    """(T, M) in float64."""
    stft = front.stft
    window = torch.hann_window(stft.win_length, dtype=torch.float64)
    spectrum = torch.stft(
        audio.double()[None], stft.n_fft, stft.hop_length, stft.win_length, window, center=True, return_complex=True
    )[0, :, :frames]
    return (spectrum.abs().square().T @ front.logmel.melmat.double()).clamp(min=1e-10).log()


def largest_errors(size: int, win: int, hop: int, bins: int) -> list[tuple[str, float, float]]:
    """Of ours and of PyTorch's frames, signal by signal."""
    front = frontend(size, win, hop, bins)
    logmel = LogMel(front)
    assert logmel.native is not None
    samples = 41 * hop + size
    found = []
    for name, audio in signals(samples).items():
        frames = logmel.complete(samples)
        right = exact(front, audio, frames)
        ours = logmel.padded([audio], [0], [frames])[0]
        theirs = front(audio[None], torch.tensor([samples]))[0][0, :frames]
        errors = [float((each - right).abs().max()) for each in (ours, theirs)]
        found.append((name, *errors))
    return found


@pytest.mark.parametrize("sizes", SIZES)
def test_the_error_is_at_most_twice_that_of_pytorch(sizes):
    for name, ours, theirs in largest_errors(*sizes):
        assert ours <= 2 * theirs + 1e-5, name


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
from tests.ops.test_features import SIZES, largest_errors, moments_after
for sizes in SIZES:
    for name, ours, theirs in largest_errors(*sizes):
        assert ours <= 2 * theirs + 1e-5, (sizes, name, ours, theirs)
for bins in (1, 16, 80, 37):
    moments_after(bins)
"""
    run_with(isa, code)


def test_rows_of_all_lengths_are_what_they_are_alone():
    logmel = LogMel(frontend(*SIZES[2]))
    torch.manual_seed(0)
    audio = [torch.randn(n) for n in (9000, 300, 0, 4000, 16_000)]
    first, last = [0, 0, 0, 7, 3], [50, 2, 0, 7, 93]
    rows = logmel.padded(audio, first, last)
    assert rows.shape == (5, 90, 80)
    for row, *one in zip(rows, audio, first, last, strict=True):
        count = one[2] - one[1]
        assert not row[count:].any()
        assert row[:count].equal(logmel.padded(*[[each] for each in one])[0])


@pytest.mark.parametrize("samples", [0, 1, 2, 30, 200, 256, 257, 4000])
def test_edges_are_mirrored_and_silent_as_without_a_kernel(samples):
    native, plain = (LogMel(frontend(*SIZES[2])) for _ in range(2))
    plain.native = None
    audio = [torch.randn(samples)]
    for first, last in ((0, 1), (0, 30), (1, 27), (25, 26), (3, 3), (3, 2)):
        one, other = (each.padded(audio, [first], [last]) for each in (native, plain))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_what_has_no_kernel_runs_on_pytorch():
    assert NativeLogMel.fits(frontend(*SIZES[2]))
    assert not NativeLogMel.fits(frontend(480, 400, 160, 20))
    odd = frontend(*SIZES[2])
    odd.logmel.log_base = 10.0
    assert not NativeLogMel.fits(odd)
    audio = 0.1 * torch.randn(4000)
    expected, _ = odd(audio[None], torch.tensor([4000]))
    torch.testing.assert_close(LogMel(odd).padded([audio], [0], [20])[0], expected[0, :20], rtol=0, atol=1e-5)


def test_a_normalised_transform_has_it_in_its_window():
    front = frontend(*SIZES[2], normalized=True)
    audio = 0.1 * torch.randn(4000)
    expected, _ = front(audio[None], torch.tensor([4000]))
    torch.testing.assert_close(LogMel(front).padded([audio], [0], [20])[0], expected[0, :20], rtol=0, atol=1e-5)


def moments_after(bins: int) -> None:
    """Ours against PyTorch's, with what is blanked and with a past."""
    torch.manual_seed(0)
    x = torch.randn(3, 30, bins) * 3 - 9
    x[:, 4:7] = 0.0
    x[1, :, : bins // 3] = 0.0
    normalize = RunningMVN()
    lengths = torch.tensor([30, 11, 1])
    past = normalize.start(3, bins)
    for _ in range(2):
        ours, after = normalize.advance(x, past, lengths)
        theirs, expected = normalize.advance(x.requires_grad_(), past, lengths)
        x = x.detach()
        for row, length in enumerate(lengths):
            torch.testing.assert_close(ours[row, :length], theirs[row, :length].detach(), rtol=1e-5, atol=1e-5)
            assert not ours[row, length:].any()
        torch.testing.assert_close(after, expected.detach(), rtol=1e-12, atol=1e-9)
        past = after


@pytest.mark.parametrize("bins", [1, 16, 80])
def test_running_mvn(bins):
    moments_after(bins)


def test_wrong_arguments_are_errors():
    window, turns, spans, filters, floor = NativeLogMel(frontend(*SIZES[2])).constants
    right = {
        "audio": [torch.zeros(672)], "bounds": torch.tensor([[0, 2]]), "hop": 160, "window": window, "turns": turns,
        "spans": spans, "filters": filters, "floor": floor,
    }  # fmt: skip
    assert ops.native.log_mel(**right).shape == (1, 2, 80)
    far = spans.clone()
    far[-1] += 30
    for wrong in (
        {"bounds": torch.tensor([[2, 1]])}, {"bounds": torch.tensor([[-1, 2]])}, {"bounds": torch.tensor([2])},
        {"bounds": torch.tensor([[0, 2]], dtype=torch.int32)}, {"hop": 0}, {"spans": far},
        {"audio": [torch.zeros(672).double()]}, {"window": torch.zeros(480)}, {"window": torch.zeros(16)},
        {"turns": turns[:, 1:]}, {"filters": filters[1:]}, {"spans": spans[1:]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="log_mel"):
            ops.native.log_mel(**(right | wrong))
    x, lengths, mean = torch.randn(2, 5, 4), torch.tensor([5, 3]), torch.zeros(4)
    moments = torch.ones(2, 3, 4, dtype=torch.float64)
    for wrong in (
        (x.double(), lengths, moments, mean), (x, torch.tensor([6, 1]), moments, mean),
        (x, lengths[:1], moments, mean), (x, lengths, moments, mean[1:]),
        (x, lengths, moments.float(), mean), (x, lengths, moments[:, :2], mean),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="running_mvn"):
            ops.native.running_mvn(*wrong, SMALLEST_VARIANCE, True)


def test_torch_accepts_the_ops():
    constants = NativeLogMel(frontend(*SIZES[0])).constants
    pieces = [torch.randn(64), torch.randn(32)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.bestow.log_mel.default,
        (pieces, torch.tensor([[0, 3], [2, 3]]), 16, *constants),
        test_utils="test_schema",
    )
    moments = torch.ones(2, 3, 4, dtype=torch.float64)
    x = torch.randn(2, 5, 4)
    torch.library.opcheck(
        torch.ops.bestow.running_mvn.default,
        (x, torch.tensor([5, 3]), moments, torch.zeros(4), 1e-3, True),
        test_utils=tests,
    )
