"""A process that has left its group has none of the group's threads any more, which could not end with Python."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from espnet_bestow.process_group import leave_group
from espnet_bestow.shared_training import training_together
from tests.processes import gloo_threads, in_processes
from tests.test_shared_training import WithLoss, sgd


def train() -> None:
    """Two models that only circles know in the end, with gradients on either way."""
    parallel, alone = DistributedDataParallel(WithLoss()), WithLoss()
    with training_together(alone, sgd(alone)) as shared:
        for model in (parallel, shared):
            model(torch.ones(1, 5))[0].backward()
            model.known_by = [model]


def threads(rank: int) -> list[int]:
    """While the group trains, and when it has been left."""
    train()
    counts = [gloo_threads()]
    leave_group()
    return [*counts, gloo_threads()]


def test_no_thread_of_a_group_outlives_it(tmp_path):
    for during, afterwards in in_processes(threads, 2, tmp_path):
        assert during > 0 and afterwards == 0


def test_leaving_no_group_is_no_error():
    assert not dist.is_initialized()
    leave_group()
