"""Small files in the three layouts of ModelNet."""

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


def write_resampled(folder: Path, classes: int = 40, num_points: int = 20) -> Path:
    """`modelnet40_normal_resampled`: of every class two clouds for training and one for test."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"class_{number:02d}" for number in range(classes)]
    (folder / f"modelnet{classes}_shape_names.txt").write_text("\n".join(names))
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        for number in (1, 2, 3):
            table = rng.normal(size=(num_points, 6))
            np.savetxt(folder / name / f"{name}_{number:04d}.txt", table, fmt="%.6f", delimiter=",")
            lists["test" if number == 3 else "train"].append(f"{name}_{number:04d}")
    for split, lines in lists.items():
        (folder / f"modelnet{classes}_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


#: A unit square in the plane z = 3, of two triangles; its header runs into its counts, as in some of the real files.
SQUARE = "OFF4 2 0\n0 0 3\n1 0 3\n1 1 3\n0 1 3\n3 0 1 2\n3 0 2 3\n"


def write_meshes(folder: Path, classes: int = 10) -> Path:
    """`ModelNet10`: of every class two meshes for training and one for test."""
    for number in range(classes):
        name = f"class_{number:02d}"
        for split, index in (("train", 1), ("train", 2), ("test", 3)):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
            header = "OFF4" if index == 1 else "OFF\n4"
            (folder / name / split / f"{name}_{index:04d}.off").write_text(SQUARE.replace("OFF4", header))
    return folder
