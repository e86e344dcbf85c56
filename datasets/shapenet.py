"""ShapeNetPart in its three layouts, and your own labeled clouds in the same layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcattn.data.dataset import FileDataset
from pcattn.data.splits import SPLITS
from pcattn.datasets.shapenet_layouts import HINT, OFFICIAL_PARTS, Layout, find_layout
from pcattn.io.cache import Cached
from pcattn.utils.errors import DatasetError, DatasetNotFoundError


class ShapeNetPart(FileDataset):
    """ShapeNetPart: 16,881 shapes of 16 categories with 50 parts, or your own labeled clouds in its layout.

    The layout is found automatically:

    - text: `<folder>/<id>.txt` with lines `x y z nx ny nz label` or `x y z label`; labels are global part ids;
    - points and labels in separate files: `<folder>/points/<id>.pts` with lines `x y z` and
      `<folder>/points_label/<id>.seg` with one label per line, counted from 1 within the category;
    - HDF5: `ply_data_{train,val,test}*.h5` with `data` (n, P, 3), `label` (n, 1) and the global parts `pid` (n, P).

    The first two list their categories in `synsetoffset2category.txt`, as lines of a name and a folder. The list may
    also have categories of your own, whose parts are the labels that occur. The splits are those of
    `train_test_split/shuffled_{train,val,test}_file_list.json`. Without these lists, a fifth of each category, chosen
    by a hash of the file names, is the test split, and there is no validation split.

    The files are read once, in parallel, and cached (`pcattn.io.cache`); the cache is mapped, not loaded.

    Args:
        root: the folder with these files, or its parent folder.
        split: `"train"`, `"val"` or `"test"`.
        categories: names of the categories to read. Labels and class names stay the same. None reads all.
        on_error: `"raise"`, or `"skip"` to leave out files that cannot be used, with a warning.
        split_seed: seed of the test split where there are no lists.
        transform: see `FileDataset`.
        pre_transform: see `FileDataset`.
        pre_filter: see `FileDataset`.

    Each item is a `Data` with `pos` (N, 3), `y` (N,) global parts, `category` (1,) and, where the files have them,
    normals `x` (N, 3).

    Attributes:
        class_names: names of all categories.
        parts: part ids of each category.
        part_names: names of all part ids from 0.
        splits: the splits that the files have.

    Raises:
        DatasetNotFoundError: no such files under `root`, or no such split.
        DatasetBrokenError: a file is damaged or holds something else.

    Source: Yi et al. 2016, A scalable active framework for region annotation in 3D shape collections.
    """

    up_axis = "y"
    numbers_parts = True
    feature_names = ("nx", "ny", "nz")

    def __init__(
        self,
        root: str,
        split: str = "train",
        categories: list[str] | None = None,
        on_error: str = "raise",
        split_seed: int = 0,
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(root, split, transform, pre_transform, pre_filter, on_error)
        layout = find_layout(Path(root))
        self.raw_files = files = layout.files()
        found = layout.read(files, self.skips, split_seed)
        with found.reading():
            skipped = list(found.info["skipped"])
        self.report_skipped(skipped)
        with found.reading():
            self.class_names = found.info["class_names"]
            self.parts = found.info["parts"]
            self.part_names = _part_names(layout, found.info["parts"])
            bounds: dict[str, list[int]] = found.info["splits"]
            self.splits = tuple(name for name in SPLITS if name in bounds)
            if split not in bounds:
                there = ", ".join(self.splits)
                hint = f"It has {there}. {HINT}"
                raise DatasetNotFoundError(f"the {split} split of ShapeNetPart", layout.folder, f"{split} files", hint)
            first, last = bounds[split]
            self.store(*_content(found, first, last, _numbers(categories, found.info["class_names"])))
        self.preprocess()

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether one of the layouts is found under `root`, whole or broken."""
        try:
            find_layout(Path(root))
        except DatasetNotFoundError:
            return False
        except DatasetError:
            return True
        return True

    @classmethod
    def read_class_names(cls, root: str) -> list[str]:
        """Names of the categories by their labels, from the list that comes with the files."""
        return [category.name for category in find_layout(Path(root)).categories]


def _numbers(names: Sequence[str] | None, known: list[str]) -> list[int] | None:
    """Labels of the categories that were asked for."""
    if names is None:
        return None
    if unknown := [name for name in names if name not in known]:
        raise DatasetError(f"expected categories among {', '.join(known)}, but got {', '.join(unknown)}")
    return [known.index(name) for name in names]


def _content(
    found: Cached, first: int, last: int, categories: list[int] | None
) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """Sizes, points and labels of clouds `first` to `last` of what was read."""
    sizes, labels = np.array(found.arrays["sizes"]), np.array(found.arrays["category"])
    starts = np.concatenate(([0], np.cumsum(sizes)))
    rows: Any = slice(starts[first], starts[last])
    chosen = np.arange(first, last)
    if categories is not None:  # what is left of the mapped arrays is read into memory
        chosen = chosen[np.isin(labels[first:last], categories)]
        if not len(chosen):
            raise DatasetError(f"expected clouds of the categories {categories} in this split, but there are none")
        rows = np.concatenate([np.arange(starts[cloud], starts[cloud + 1]) for cloud in chosen])
    points = {
        name: found.arrays[key][rows]
        for name, key in (("pos", "pos"), ("x", "normals"), ("y", "part"))
        if key in found.arrays
    }
    return sizes[chosen], points, {"category": labels[chosen]}


def _part_names(layout: Layout, parts: list[list[int]]) -> list[str]:
    """Category and label of each part id: the label in the files, counted from 1 for the official categories."""
    names = ["unused"] * (1 + max(map(max, parts)))
    for category, ids in zip(layout.categories, parts, strict=True):
        own_and_global = category.folder not in OFFICIAL_PARTS and not layout.local_from
        first = 0 if own_and_global else ids[0] - 1
        for part in ids:
            names[part] = f"{category.name}/{part - first}"
    return names
