"""How a process leaves the group that it trained with.

Threads of gloo give up the tensors of a message a moment after the message has arrived. A tensor that Python knows too
can only be given up while Python is alive: a process that ends in that moment aborts ("terminate called without an
active exception"), and takes the others with it. A group that nobody knows any more waits for its threads.
"""

import gc

import torch.distributed as dist

# Imported late, as by DistributedDataParallel, its functions know the group of that time for ever, as a default.
import torch.distributed.nn  # noqa: F401


def leave_group() -> None:
    """The last thing that a process does with its group, when models that know it are out of use."""
    if dist.is_initialized():
        gc.collect()  # such models are in circles
        dist.destroy_process_group()
