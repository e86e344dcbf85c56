"""The base class of data sets, as authors of their own use it: declared attributes, and torch-geometric's contract."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeScale

from pcattn.data import PointCloudDataset
from pcattn.datasets import DATASETS, open_dataset, recognize
from pcattn.training import PointCloudDataModule
from pcattn.utils.errors import DatasetError, DatasetNotFoundError


class Screws(PointCloudDataset):
    """A data set in the manner of torch-geometric: files in `raw/`, processed once, an item a cloud."""

    splits = ("train", "test")
    class_names = ("bolt", "nut")
    up_axis = "y"
    raw_file_names = ("screws.pt",)

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
    ) -> None:
        super().__init__(root, split, transform, pre_transform, pre_filter)
        self.load(self.processed_paths[0])

    @property
    def processed_file_names(self) -> list[str]:
        return [f"{self.split}.pt"]

    def download(self) -> None:
        raise DatasetNotFoundError("Screws", Path(self.root), "raw/screws.pt", "Ask the workshop.")

    def process(self) -> None:
        pos = torch.load(self.raw_paths[0])[self.split]
        items = [Data(pos=cloud, y=torch.tensor([number % 2])) for number, cloud in enumerate(pos)]
        kept = [item for item in items if self.pre_filter is None or self.pre_filter(item)]
        self.save([self.pre_transform(item) if self.pre_transform else item for item in kept], self.processed_paths[0])


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "raw").mkdir()
    torch.manual_seed(0)
    torch.save({"train": torch.randn(8, 20, 3), "test": torch.randn(4, 20, 3)}, tmp_path / "raw" / "screws.pt")
    return str(tmp_path)


@pytest.fixture
def registered() -> Iterator[str]:
    DATASETS.register("screws")(Screws)  # the one line beside the file
    yield "screws"
    del DATASETS["screws"]


class TestOneFileAndOneLine:
    @pytest.mark.parametrize("name", ["screws", f"{__name__}.Screws"])
    def test_a_data_set_of_your_own(self, root: str, registered: str, name: str) -> None:
        data = PointCloudDataModule(root, name, num_points=16, batch_size=2, val_fraction=0.25)
        assert (data.class_names, data.up_axis) == (["bolt", "nut"], "y")
        data.setup("fit")
        data.setup("test")
        sizes = [len(loader.dataset) for loader in (data.train_dataloader(), data.test_dataloader())]
        assert (sizes, len(data.val_indices)) == ([8, 4], 2)
        assert data.example().pos.shape == (2, 16, 3)

    def test_is_recognized(self, root: str, registered: str, tmp_path: Path) -> None:
        assert recognize(root) == ["screws"]
        (tmp_path / "empty").mkdir()
        assert recognize(str(tmp_path / "empty")) == []


class TestContractOfTorchGeometric:
    def test_files(self, root: str) -> None:
        dataset = Screws(root, "test")
        assert [Path(path).name for path in dataset.raw_paths + dataset.processed_paths] == ["screws.pt", "test.pt"]
        assert sorted(path.name for path in Path(root, "processed").glob("t*.pt")) == ["test.pt"]
        with pytest.raises(DatasetNotFoundError, match="Ask the workshop"):
            Screws(f"{root}/nowhere")

    def test_transforms(self, root: str) -> None:
        dataset = Screws(root, transform=lambda data: Data(pos=2 * data.pos, y=data.y), pre_transform=NormalizeScale())
        assert float(dataset[3].pos.abs().max()) == pytest.approx(2, abs=1e-4)

    def test_transforms_of_a_configuration(self, root: str) -> None:
        steps = [{"NormalizeScale": None}, {f"{__name__}.Shift": {"offset": 5.0}}]
        options = {"transform": steps, "pre_filter": f"{__name__}.is_bolt"}
        dataset = open_dataset(f"{__name__}.Screws", root, "train", **options)
        assert len(dataset) == 4
        assert float(dataset[0].pos.min()) == pytest.approx(4, abs=1)
        assert float(dataset[0].pos.max()) <= 6
        data = PointCloudDataModule(
            root, f"{__name__}.Screws", options, num_points=20, batch_size=2, normalize="none", val_fraction=0.5
        )
        data.setup("fit")
        for loader in (data.train_dataloader(), data.val_dataloader()):
            for batch in loader:
                assert ((batch.pos >= 4 - 1e-4) & (batch.pos <= 6 + 1e-4)).all()

    @pytest.mark.parametrize(
        ("transform", "message"),
        [
            ("NormalizeScales", "did you mean 'NormalizeScale'"),
            ({"RandomJitter": {"size": 1}}, "expected arguments among: translate"),
            ({"RandomJitter": {"translate": 1}, "Center": None}, "expected transform to be a transform, its name"),
            ({"RandomJitter": 1}, "expected arguments {name: value} of transform 'RandomJitter', but got 1"),
        ],
    )
    def test_messages(self, root: str, transform: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_dataset(f"{__name__}.Screws", root, "train", transform=transform)

    def test_a_transform_given_in_python_is_not_kept_in_checkpoints(self, root: str) -> None:
        data = PointCloudDataModule(root, f"{__name__}.Screws", {"transform": NormalizeScale()}, num_points=8)
        assert data.hparams["dataset_kwargs"] == {"transform": "NormalizeScale()"}
        data.setup("fit")
        assert data.example().pos.abs().max() <= 1


class Shift:
    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, data: Data) -> Data:
        return Data(pos=data.pos + self.offset, y=data.y)


def is_bolt(data: Data) -> bool:
    return int(data.y) == 0


def test_splits_are_checked(root: str) -> None:
    with pytest.raises(ValueError, match="expected split to be one of train, test, but got 'val'"):
        Screws(root, "val")
    with pytest.raises(DatasetError, match="expected split"):
        open_dataset(f"{__name__}.Screws", root, "val")


class TestNumberOfClasses:
    """Without names, by the labels of the clouds, also where `y` are those of points."""

    def make(self, **fields: torch.Tensor) -> PointCloudDataset:
        dataset = PointCloudDataset()
        items = [Data(pos=torch.zeros(4, 3), **{name: value[i] for name, value in fields.items()}) for i in range(2)]
        dataset._data, dataset.slices = dataset.collate(items)
        return dataset

    def test_classes_of_clouds(self) -> None:
        assert self.make(y=torch.tensor([[0], [2]])).num_classes == 3

    def test_categories_beside_parts(self) -> None:
        parts = torch.arange(8).view(2, 4)
        assert self.make(y=parts, category=torch.tensor([[0], [1]])).num_classes == 2
