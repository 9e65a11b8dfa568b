"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

DataName = Literal["shapes", "cifar10", "cifar100", "stl10", "folder", "csv", "webdataset"]
DynamicsName = Literal["parabolic", "hamiltonian", "second_order", "resnet"]
MethodName = Literal["copy", "rediscretize", "galerkin", "calibrated", "calibrated_full"]
AmpName = Literal["off", "bf16", "fp16", "auto"]
PolicyName = Literal["across", "one_cycle", "piecewise", "piecewise_long"]
OptimizerName = Literal["sgd", "muon", "adamw"]
TrackerName = Literal["csv", "tensorboard", "mlflow", "wandb"]

Checkpoint = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set."""

    data: DataName | None = None
    """Data set; `folder` reads ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val), `csv` the images that the file
    ROOT lists in its columns file and label, `webdataset` tar files as `multipde shard` writes them. Left out: that of
    the run."""
    root: Path | None = None
    """Directory of the data set; or the CSV file; or the training shards of webdataset, 'DIR/train-{000..146}.tar'."""
    download: bool = False
    """Download cifar10, cifar100 or stl10 if it is missing."""
    stream: bool | None = None
    """Decode the images of a folder batch by batch. Left out: if they would take more than 4 GiB of memory."""
    test_share: float | None = None
    """For a folder or CSV file without test images: the share of every class that is held back for the test.
    Left out: such data are refused."""
    shuffle_buffer: int | None = None
    """Number of places by which an image of webdataset may be moved from the order of the shards. Left out: 10000."""
    skip_bad: bool = False
    """Skip images of a folder, a CSV file or shards that cannot be decoded, and shards that are missing or damaged from
    there on; they are counted and named. Each image is decoded once at the start."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `multipde.load_data`."""
        if self.data == "shapes" and self.root is not None:
            raise ValueError(f"root must be left out for data 'shapes', got {self.root}; type --data folder")
        given = {"root": self.root, "download": self.download, "stream_files": self.stream}
        others = {"test_share": self.test_share, "shuffle_buffer": self.shuffle_buffer}
        others |= {"skip_bad": True} if self.skip_bad else {}
        return given | {name: value for name, value in others.items() if value is not None}

    def of(self, checkpoint: Path) -> tuple[str, dict[str, Any]] | None:
        """The data that these options name, or those of the checkpoint's run with the other options given here."""
        if self.data is not None:
            return self.data, self.options()
        from multipde.storage.run_directory import recorded_data

        recorded = recorded_data(checkpoint)
        given = {name: value for name, value in self.options().items() if value is not None}
        given = given if self.download else {name: value for name, value in given.items() if name != "download"}
        return None if recorded is None else (recorded[0], recorded[1] | given)
