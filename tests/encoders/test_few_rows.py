"""FewRowsLinear is F.linear, for every number of rows."""

import pytest
import torch

from espnet_bestow.encoders.few_rows import HUGE_PAGE, MOST_ROWS, FewRowsLinear


@pytest.mark.parametrize("outputs", [64, 63])  # in panels, and not
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 5), (1, MOST_ROWS + 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_linear(outputs, shape, biased):
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, 24) / 5, torch.randn(outputs) if biased else None
    x = torch.randn(*shape, 24)
    got = FewRowsLinear(weight, bias)(x)
    torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, bias), rtol=0, atol=1e-5)


def test_large_weights():
    """Those that get huge pages."""
    torch.manual_seed(0)
    weight, x = torch.randn(1024, HUGE_PAGE // 4096) / 23, torch.randn(1, 2, HUGE_PAGE // 4096)
    got = FewRowsLinear(weight, None)(x)
    torch.testing.assert_close(got, torch.nn.functional.linear(x, weight), rtol=0, atol=1e-5)
