"""Data sets of torch-geometric that know nothing of this package."""

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data, Dataset
from torch_geometric.transforms import Constant

from pcattn.datasets import PyGPointClouds, find_dataset, open_dataset
from pcattn.utils.errors import DatasetError
from tests.data.test_dense import Clouds, TenClouds


class Listed(Dataset):
    """Not in memory, without an argument `train`, its clouds of several sizes."""

    classes = ("even", "odd")

    def __init__(self, root: str, part: str = "a", labeled: bool = True) -> None:
        super().__init__(None)
        self.start, self.labeled = 5 * (part == "b"), labeled

    def len(self) -> int:
        return 3

    def get(self, index: int) -> Data:
        data = Data(pos=torch.full((4 + index, 3), float(self.start + index)))
        if self.labeled:
            data.y = index % 2
        return data


class TestPyG:
    def test_items(self) -> None:
        options = {"path": f"{__name__}.Listed", "train_kwargs": {"part": "a"}, "test_kwargs": {"part": "b"}}
        train, test = PyGPointClouds("x", **options), PyGPointClouds("x", "test", **options)
        assert list(train.class_names) == ["even", "odd"]
        assert (len(train), train._data.y.tolist(), train.slices["pos"].tolist()) == (3, [0, 1, 0], [0, 4, 9, 15])
        assert float(test[2].pos[0, 0]) == 7

    def test_messages(self) -> None:
        path = f"{__name__}.Listed"
        with pytest.raises(DatasetError, match="expected train_kwargs"):
            PyGPointClouds("x", path=path)
        with pytest.raises(DatasetError, match="pos and y in every item"):
            PyGPointClouds("x", path=path, train_kwargs={"labeled": False})
        with pytest.raises(ValueError, match="import path"):
            PyGPointClouds("x")
        with pytest.raises(ValueError, match="cannot be imported"):
            PyGPointClouds("x", path="no.where")

    def test_a_validation_split(self) -> None:
        options = {"path": f"{__name__}.Listed", "train_kwargs": {"part": "a"}, "val_kwargs": {"part": "b"}}
        assert PyGPointClouds("x", **options).splits == ("train", "val", "test")
        assert float(PyGPointClouds("x", "val", **options)[2].pos[0, 0]) == 7
        with pytest.raises(ValueError, match="expected split to be one of train, test, but got 'val'"):
            PyGPointClouds("x", "val", path=options["path"], train_kwargs={"part": "a"})

    def test_transforms(self) -> None:
        options = {"path": f"{__name__}.Listed", "train_kwargs": {"part": "b"}}
        dataset = PyGPointClouds(
            "x", **options, pre_filter=lambda data: int(data.y) == 0, pre_transform=Constant(), transform=twice
        )
        assert (len(dataset), len(dataset[0].pos)) == (2, 8)
        assert dataset._data.x.tolist() == [[1.0]] * 10

    def test_features_of_some_items(self) -> None:
        options = {"path": f"{__name__}.SomeFeatures"}
        with pytest.raises(DatasetError, match=r"expected x in all items of .*, but item 1 lacks it"):
            PyGPointClouds("x", **options)


def twice(data: Data) -> Data:
    return Data(pos=torch.cat((data.pos, data.pos)), y=data.y)


class SomeFeatures(Listed):
    def __init__(self, root: str, train: bool) -> None:
        super().__init__(root)

    def get(self, index: int) -> Data:
        data = super().get(index)
        if index == 0:
            data.x = data.pos
        return data


class Described(TenClouds):
    """A plain `InMemoryDataset` that is called with `train`."""

    class_names = ("even", "odd")
    up_axis = "y"

    def __init__(self, root: str, train: bool, scale: float = 1.0) -> None:
        super().__init__(root, train)
        self._data.pos.fill_(scale if train else 0)


class BySplit(Clouds):
    def __init__(self, root: str, split: str) -> None:
        super().__init__((4,) * len(split), parts=False)


class TestAdapted:
    """By import path, where the name of a data set goes."""

    def test_one_called_with_train(self) -> None:
        found = find_dataset(f"{__name__}.Described")
        assert (found.splits, found.class_names, found.up_axis) == (("train", "test"), ("even", "odd"), "y")
        train, test = (open_dataset(f"{__name__}.Described", "x", split, scale=3.0) for split in ("train", "test"))
        assert (train[0].pos.unique().tolist(), test[0].pos.unique().tolist()) == ([3.0], [0.0])
        assert (train.class_names, train.up_axis, train.splits) == (("even", "odd"), "y", ("train", "test"))
        assert train.feature_names == ("nx", "ny", "nz")  # three features without names

    def test_one_called_with_split(self) -> None:
        assert find_dataset(f"{__name__}.BySplit").splits == ("train", "val", "test")
        assert [len(open_dataset(f"{__name__}.BySplit", "x", split)) for split in ("train", "val", "test")] == [5, 3, 4]

    def test_messages(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"unexpected keyword argument 'size'.*among: train, scale"):
            open_dataset(f"{__name__}.Described", "x", "train", size=1)
        with pytest.raises(DatasetError, match="expected split to be one of train, test, but got 'val'"):
            open_dataset(f"{__name__}.Described", "x", "val")
        with pytest.raises(
            DatasetError, match=r"expected .*Memoryless to be an InMemoryDataset .*, but got Memoryless"
        ):
            open_dataset(f"{__name__}.Memoryless", "x", "train")


class Memoryless(Listed):
    def __init__(self, root: str, train: bool) -> None:
        super().__init__(root)
