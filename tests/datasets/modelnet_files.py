"""Small files in the layout of modelnet40_ply_hdf5_2048."""

from pathlib import Path

import h5py
import numpy as np

NAMES = [f"class{i:02d}" for i in range(40)]


def write_modelnet40(
    folder: Path, train: tuple[int, ...] = (80, 80), test: tuple[int, ...] = (40,), num_points: int = 64
) -> Path:
    """Random clouds, each class a sphere of its own radius, in the files of the classic archive."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "shape_names.txt").write_text("\n".join(NAMES) + "\n")
    for split, sizes in (("train", train), ("test", test)):
        for number, size in enumerate(sizes):
            label = (np.arange(size) % 40).astype(np.uint8)[:, None]
            data = rng.normal(size=(size, num_points, 3))
            data *= (1 + label[..., None]) / 40 / np.linalg.norm(data, axis=2, keepdims=True)
            with h5py.File(folder / f"ply_data_{split}{number}.h5", "w") as file:
                file.create_dataset("data", data=data.astype(np.float32), compression="gzip")
                file.create_dataset("label", data=label)
        if sizes:
            lines = [f"data/somewhere_else/ply_data_{split}{number}.h5\n" for number in range(len(sizes))]
            (folder / f"{split}_files.txt").write_text("".join(lines))
    return folder
