"""Single clouds on disk: `read_cloud` reads all common formats, and `write_ply` writes the one that keeps everything.

OBJ and STL need trimesh, LAS and LAZ need laspy, and all other formats need only NumPy.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcattn.io import kitti, las, obj, off, pcd, ply, stl, text
from pcattn.io import mesh as meshes
from pcattn.io import numpy as arrays
from pcattn.io.columns import Content, assemble, color_scale
from pcattn.utils.errors import DatasetBrokenError, DatasetError, InputError
from pcattn.utils.files import atomic_write


class Cloud(NamedTuple):
    """A point cloud as its file holds it."""

    #: (N, 3) positions: float32 where the file says so, else float64 (georeferenced data needs it).
    pos: np.ndarray
    #: (N,) or (N, C) each, in the file's type: normals, colors (see `read_cloud`), intensity, label, ...
    attributes: dict[str, np.ndarray]


#: The reader of each suffix.
READERS: dict[str, Callable[[Path, Sequence[str] | None], Content]] = {
    ".ply": ply.read,
    ".pcd": pcd.read,
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    **dict.fromkeys((".xyz", ".xyzn", ".xyzrgb", ".txt", ".pts", ".csv", ".asc"), text.read),
    ".off": off.read,
    ".obj": obj.read,
    ".stl": stl.read,
    **dict.fromkeys((".las", ".laz"), las.read),
    ".bin": kitti.read,
}

#: File name suffixes that `read_cloud` takes.
SUFFIXES = tuple(READERS)

#: Points of a block: as many as `preprocess` adds up at a time, so that the sums are those of a whole cloud.
BLOCK = 1 << 18

# Single precision has steps of 1/8 at one million.
_MILLION = 1e6

#: First bytes of files, what they are, and the suffixes under which they are right.
_SIGNATURES: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (b"ply\n", "PLY", (".ply",)),
    (b"ply\r", "PLY", (".ply",)),
    (b"# .PCD", "PCD", (".pcd",)),
    (b"\x93NUMPY", "a numpy array", (".npy",)),
    (b"PK\x03\x04", "a zip archive", (".npz",)),
    (b"OFF", "OFF", (".off",)),
    (b"LASF", "LAS", (".las", ".laz")),
    (b"\x89PNG", "a PNG image", ()),
    (b"\xff\xd8\xff", "a JPEG image", ()),
    (b"GIF8", "a GIF image", ()),
    (b"%PDF", "a PDF document", ()),
    (b"\x89HDF", "HDF5", ()),
    (b"\x1f\x8b", "a gzip archive", ()),
)


def read_cloud(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    num_points: int = 10_000,
    mesh: str = "sample",
    seed: int = 0,
    drop_invalid: bool = False,
) -> Cloud:
    """Read one cloud, or sample one mesh.

    Channels become `normals` (N, 3) and `colors` (N, 3) where the file has them under any of their names
    (`pcattn.io.channels`); every other attribute keeps its name. Colors are integers that span their type, or floats in
    [0, 1]: values of 0 to 255 in floats or wide integers become uint8, or are divided by 255 if they are not whole.

    A text table without a line of names is understood as x, y, z and then: three columns of unit vectors are `normals`,
    three of 0 to 255 are `colors`, and one in a `.pts` file is `intensity`. Other columns are called `column_4` and so
    on. Where names and columns do not fit together, or two choices of columns may be the colors, the file is refused,
    and `columns` names them. Pickled NumPy arrays are refused, never unpickled.

    Args:
        path: the file; its suffix (one of `SUFFIXES`) names the format, and the content must agree.
        columns: names of the columns of a text file, an (N, C) array or a `.bin` file; `x`, `y`, `z` must be among
            them. Lines above the numbers of a text file are then passed over.
        num_points: points sampled from a mesh, uniformly by area.
        mesh: `"sample"` gives points on the faces with the normals of the faces, and other attributes from the nearest
            corner; `"vertices"` gives the vertices of the mesh as they are, with their own attributes.
        seed: of the sampling.
        drop_invalid: leave out points with NaN or infinite coordinates (depth cameras write them) instead of raising.

    Raises:
        DatasetBrokenError: the file is missing, empty, truncated, of another format, or has NaN or infinite
            coordinates; the message names the file and the reason.

    Warns:
        PrecisionWarning: the file holds coordinates of millions in single precision.
    """
    options: dict[str, Any] = {"num_points": num_points, "mesh": mesh, "seed": seed, "drop_invalid": drop_invalid}
    (cloud,) = CloudFile(path, block=None, columns=columns, **options)
    return cloud


class PrecisionWarning(UserWarning):
    """A file stores coordinates in a type that is too coarse for them."""


class CloudFile:
    """A cloud in a file, read block by block and as often as needed; the points keep their order.

    Binary PLY and PCD, `.npy` and `.bin` are mapped: only the current block is in memory. Other formats, and meshes,
    are read as a whole.

    Args:
        path: the file.
        block: points of a block (the last may have fewer); None takes all at once.
        columns, num_points, mesh, seed, drop_invalid: see `read_cloud`.

    Raises:
        DatasetBrokenError: see `read_cloud`; an invalid point is found when its block is read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        block: int | None = BLOCK,
        columns: Sequence[str] | None = None,
        num_points: int = 10_000,
        mesh: str = "sample",
        seed: int = 0,
        drop_invalid: bool = False,
    ) -> None:
        self.path, self._drop_invalid = Path(path), drop_invalid
        if mesh not in ("sample", "vertices"):
            raise InputError(f"expected mesh to be sample or vertices, but got {mesh!r}")
        if num_points < 1:
            raise InputError(f"expected num_points >= 1, but got {num_points}")
        reader = READERS.get(self.path.suffix.lower())
        if reader is None:
            got = self.path.suffix or "no suffix"
            raise DatasetBrokenError(self.path, f"expected one of {', '.join(SUFFIXES)}, but got {got}")
        self._whole: Cloud | None = None
        with self._reading():
            _check_signature(self.path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of numpy, on empty lines
                self._fields, faces = reader(self.path, columns)
            self._scale = color_scale(self._fields)
            if faces is not None and mesh == "sample":
                pos, attributes = assemble(self._fields)
                check_finite(self.path, "coordinates", pos)
                self._whole = Cloud(*meshes.sample(pos, attributes, faces, num_points, seed))
                self._rows = len(self._whole.pos)
            else:
                self._rows = len(next(iter(self._fields.values())))
        if not self._rows:
            raise DatasetBrokenError(self.path, "expected points, but it has none")
        self._block = block or self._rows
        self._warn_of_lost_digits()

    @property
    def num_points(self) -> int:
        """How many points the blocks have together."""
        return sum(len(block.pos) for block in self) if self._drop_invalid else self._rows

    def __iter__(self) -> Iterator[Cloud]:
        found = 0
        for start in range(0, self._rows, self._block):
            block = self._read(slice(start, start + self._block))
            if self._drop_invalid:
                valid = np.isfinite(block.pos).all(axis=1)
                block = Cloud(block.pos[valid], {name: values[valid] for name, values in block.attributes.items()})
            else:
                check_finite(self.path, "coordinates", block.pos, start)
            found += len(block.pos)
            if len(block.pos):
                yield block
        if not found:
            raise DatasetBrokenError(self.path, "expected finite coordinates, but no point has them")

    def _read(self, rows: slice) -> Cloud:
        if self._whole is not None:
            cloud = Cloud(self._whole.pos[rows], {name: x[rows] for name, x in self._whole.attributes.items()})
        else:
            with self._reading():
                cloud = Cloud(*assemble({name: values[rows] for name, values in self._fields.items()}))
            _release(next(iter(self._fields.values())))
        if "colors" in cloud.attributes:
            cloud.attributes["colors"] = self._scale(cloud.attributes["colors"])
        return cloud

    def _warn_of_lost_digits(self) -> None:
        """The first block decides: reading all of a mapped file would take long."""
        with self._reading():
            pos = assemble({name: values[:BLOCK] for name, values in self._fields.items()})[0]
        pos = pos[np.isfinite(pos).all(axis=1)]
        if pos.dtype != np.float32 or not len(pos):
            return
        largest = float(np.abs(pos).max())
        if largest >= _MILLION and largest > 10 * float(np.ptp(pos, axis=0).max()):
            message = f"{self.path} holds coordinates up to {largest:,.0f} in single precision, in steps of "
            message += f"{np.spacing(np.float32(largest)):.2g}: store them in double precision, or move them first"
            warnings.warn(message, PrecisionWarning, stacklevel=4)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever goes wrong into an error that names the file."""
        try:
            yield
        except DatasetBrokenError:
            raise
        except OSError as error:
            raise DatasetBrokenError(self.path, error.strerror or str(error)) from error
        except ValueError as error:
            raise DatasetBrokenError(self.path, " ".join(str(error).split())) from error
        except MemoryError as error:
            raise DatasetBrokenError(self.path, "it is too large for the memory of this machine") from error
        except ImportError as error:
            raise DatasetError(f"reading {self.path} needs {error.name}: pip install {error.name}") from error
        except Exception as error:  # whatever damaged bytes make the libraries raise
            reason = " ".join(str(error).split())
            raise DatasetBrokenError(self.path, f"it cannot be read ({type(error).__name__}: {reason})") from error


def _release(array: np.ndarray) -> None:
    """Free the pages of a mapped file that were read; they are read again when needed."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def check_finite(path: Path, name: str, values: np.ndarray, first: int = 0) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        path: the file that they come from.
        name: what they are called in the message.
        values: (N,) or (N, C).
        first: number of their first point in the file.

    Raises:
        DatasetBrokenError: a value is NaN or infinite.
    """
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        bad = len(values) - int(finite.sum())
        more = f" (and {bad - 1} more)" if bad > 1 else ""
        raise DatasetBrokenError(
            path, f"expected finite {name}, but point {first + int(finite.argmin())}{more} has NaN or inf"
        )


def write_ply(path: str | Path, cloud: Cloud, *, overwrite: bool = False) -> None:
    """Write a cloud as binary little-endian PLY with all its attributes; the file appears only when it is complete.

    Args:
        path: the file; its folder must exist.
        cloud: positions and attributes. Integers of 64 bits are stored in 32, the widest that PLY has.
        overwrite: replace a file that is there already.

    Raises:
        FileExistsError: the file is there, and `overwrite` is false.
        InputError: the cloud cannot be stored: attributes of another length, text, integers beyond 32 bits.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"expected a new file, but {path} exists already")
    write_blocks(path, len(cloud.pos), [cloud], overwrite=overwrite)


def write_blocks(path: Path, num_points: int, blocks: Iterable[Cloud], *, overwrite: bool = False) -> None:
    """`write_ply` of a cloud that comes block by block.

    Raises:
        OSError: it cannot be written, or a file has appeared there meanwhile and `overwrite` is false.
        InputError: the blocks cannot be stored, differ in their attributes, or have more or fewer points in all.
    """
    with atomic_write(path) as temporary:
        ply.write(temporary, num_points, blocks)
        if path.exists() and not overwrite:
            raise FileExistsError("it exists already")  # `atomic_write` adds the path


def _check_signature(path: Path) -> None:
    """Refuse what is no regular file (reading a pipe would wait forever), is empty, or is plainly something else."""
    if not path.exists():
        raise DatasetBrokenError(path, "there is no such file")
    if not path.is_file():
        raise DatasetBrokenError(path, "expected a file, but it is a folder or a device")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise DatasetBrokenError(path, "it is empty (0 bytes)")
    for signature, kind, suffixes in _SIGNATURES:
        if start.startswith(signature) and path.suffix.lower() not in suffixes:
            advice = f": rename it to {suffixes[0]}" if suffixes else ""
            raise DatasetBrokenError(path, f"its name ends in {path.suffix}, but it holds {kind}{advice}")
