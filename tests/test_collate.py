"""Batches on their way from the processes that load them."""

import numpy as np
import torch
from espnet2.torch_utils.device_funcs import to_device
from espnet2.train.collate_fn import CommonCollateFn

from espnet_bestow.collate import SmallByValue


def test_small_tensors_travel_as_arrays_and_arrive_as_they_were():
    rng = np.random.default_rng(0)
    rows = [(f"row{i}", {"speech": rng.standard_normal(9000 + i), "text": np.arange(3 + i)}) for i in range(2)]
    collate = CommonCollateFn(int_pad_value=-1)
    loader = torch.utils.data.DataLoader([rows], batch_size=None, num_workers=1, collate_fn=SmallByValue(collate))
    ids, batch = next(iter(loader))
    expected_ids, expected = collate(rows)
    assert ids == expected_ids
    assert {name: type(x) for name, x in batch.items()} == {
        "speech": torch.Tensor,
        "speech_lengths": np.ndarray,
        "text": np.ndarray,
        "text_lengths": np.ndarray,
    }
    torch.testing.assert_close(to_device(batch, "cpu"), expected, rtol=0, atol=0)
