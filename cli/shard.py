"""``multipde shard``"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Write the images of a folder as shards: tar files that training streams, and that WebDataset reads.

    The files are copied as they are, in one fixed random order, with an index of the classes. Then train with
    --data webdataset --root OUT.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder with train/CLASS/* and test/CLASS/*, or val/CLASS/*."""
    out: Path
    """New directory."""
    images_per_shard: int = 1000
    """Number of images in every shard but the last."""

    def run_command(self) -> None:
        from multipde.runtime.console import Log
        from multipde.storage.shard_writer import write_shards

        write_shards(self.directory, self.out, images_per_shard=self.images_per_shard, log=Log(needed=True))
