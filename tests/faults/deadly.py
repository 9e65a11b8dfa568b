"""A file that takes down the process that decodes it; few imports, because a worker that is spawned has them all."""

import os
import signal
from collections.abc import Sequence

from torch.utils.data import get_worker_info


class DeadlyPaths(Sequence):
    """Paths of which one takes down the process that decodes it."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        if self.paths[index].name == "deadly.png" and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGABRT)
        return self.paths[index]
