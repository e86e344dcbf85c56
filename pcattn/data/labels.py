"""Labels that a network has no output for are refused before training: on a GPU they are not checked there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pcattn.data.dense import DenseClouds
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import DatasetError


def check_clouds(clouds: DenseClouds, num_classes: int, parts: Sequence[Sequence[int]] | None) -> None:
    """Refuse classes, categories and parts out of range.

    Args:
        clouds: what is checked.
        num_classes: number of classes, if clouds are labeled.
        parts: part ids of each category, if points are labeled; else None.

    Raises:
        InputError: a class or category is out of range.
        DatasetError: a point has a label that is not a part of the category of its cloud.
    """
    every = torch.arange(len(clouds))
    if parts is None:
        check_labels(f"label in {clouds.name}", clouds.label, num_classes, every)
        return
    if clouds.category is not None:
        check_labels(f"category in {clouds.name}", clouds.category, len(parts), every)
    categories = [0] * len(clouds) if clouds.category is None else clouds.category.tolist()
    allowed = [torch.tensor(ids) for ids in parts]
    for cloud, labels in enumerate(clouds.label.view(-1).split(clouds.sizes.tolist())):
        category = categories[cloud]
        wrong = torch.isin(labels, allowed[category], invert=True)
        if bool(wrong.any()):
            point = int(wrong.nonzero()[0])
            raise DatasetError(
                f"expected labels of points in {clouds.name} to be parts of category {category} "
                f"({list(parts[category])}), but got {int(labels[point])} for point {point} of cloud {cloud}"
            )
