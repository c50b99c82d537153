"""FewRowsLinear is F.linear, for every number of rows."""

import pytest
import torch

from espnet_bestow.encoders.few_rows import LARGE, FewRowsLinear


@pytest.mark.parametrize("inner", [8, LARGE // 64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 5), (1, 200)])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_linear(inner, shape, biased):
    torch.manual_seed(0)
    weight, bias = torch.randn(64, inner) / inner**0.5, torch.randn(64) if biased else None
    x = torch.randn(*shape, inner)
    got = FewRowsLinear(weight, bias)(x)
    torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, bias), rtol=0, atol=1e-5)
