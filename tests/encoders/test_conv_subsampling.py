import pytest
import torch

from espnet_bestow.encoders import ConvSubsampling


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return ConvSubsampling(20, output_size=8)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 64, 65])
def test_three_layers_give_a_frame_for_every_eight(layers, frames):
    out, lengths = layers(torch.randn(1, frames, 20), torch.tensor([frames]))
    assert out.shape == (1, -(-frames // 8), 8) == (1, int(lengths[0]), layers.output_size())


def test_padding_changes_nothing(layers):
    x = torch.randn(3, 40, 20)
    lengths = torch.tensor([40, 13, 27])
    together, n = layers(x, lengths)
    for row in range(3):
        alone, m = layers(x[row : row + 1, : int(lengths[row])], lengths[row : row + 1])
        assert n[row] == m[0]
        torch.testing.assert_close(together[row, : int(n[row])], alone[0])


def test_another_rate():
    out, lengths = ConvSubsampling(20, output_size=8, num_layers=2)(torch.randn(1, 16, 20), torch.tensor([16]))
    assert out.shape[1] == int(lengths[0]) == 4


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"kernel_size": 4}])
def test_wrong_numbers_are_named(options):
    with pytest.raises(ValueError, match=r"conv1d: num_layers=\d must be >= 1 and kernel_size=\d odd"):
        ConvSubsampling(20, **options)
