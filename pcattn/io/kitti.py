"""KITTI's `.bin`: x, y, z and intensity in single precision, without a header.

Source: Geiger et al., Vision meets Robotics: The KITTI Dataset, 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcattn.io.columns import Content, check_names
from pcattn.utils.errors import InputError

_COLUMNS = ("x", "y", "z", "intensity")


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Columns of the points; `columns` names those of similar files, such as nuScenes' five.

    Raises:
        InputError: the size of the file is not a multiple of that of a point.
    """
    names = check_names(columns or _COLUMNS, len(columns or _COLUMNS))
    size, point = path.stat().st_size, 4 * len(names)
    if size % point:
        raise InputError(f"expected points of {len(names)} float32 ({', '.join(names)}), but got {size} bytes")
    table = np.memmap(path, "<f4", "r").reshape(-1, len(names))
    return Content({name: table[:, index] for index, name in enumerate(names)})
