"""Single clouds on disk: `read_cloud` reads every usual format, `write_ply` writes the one that keeps everything.

PLY, PCD, text and numpy need nothing but numpy; OFF, OBJ and STL need trimesh; LAS and LAZ need laspy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcattn.atomic import replacing

from . import file_arrays, file_mesh, file_pcd, file_ply
from .errors import DatasetBrokenError, DatasetError
from .file_columns import assemble


class Cloud(NamedTuple):
    """A point cloud as its file holds it."""

    pos: np.ndarray  #: (N, 3) positions: float32 where the file says so, else float64 (georeferenced data needs it)
    attributes: dict[
        str, np.ndarray
    ]  #: (N,) or (N, C) each, in the file's type: normals, colors, intensity, label, ...


#: Reader of each suffix: `(path, columns) -> columns by name`, or `-> (columns by name, faces or None)`.
READERS: dict[str, Callable[[Path, Sequence[str] | None], Any]] = {
    ".ply": file_ply.read,
    ".pcd": file_pcd.read,
    ".npy": file_arrays.read_npy,
    ".npz": file_arrays.read_npz,
    **dict.fromkeys((".xyz", ".xyzn", ".xyzrgb", ".txt", ".pts", ".csv", ".asc"), file_arrays.read_text),
    **dict.fromkeys((".off", ".obj", ".stl"), file_mesh.read),
    **dict.fromkeys((".las", ".laz"), file_arrays.read_las),
}

#: File name suffixes that `read_cloud` takes.
SUFFIXES = tuple(READERS)

#: First bytes of files, what they are, and the suffixes under which that is right.
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

    `nx, ny, nz` become the attribute `normals` (N, 3), `red, green, blue` (or the packed `rgb` of PCD) `colors` (N, 3);
    every other property keeps its name. Text without a line of names is understood as x, y, z and then: three columns
    of unit vectors are `normals`, three of 0 to 255 `colors`, one in a `.pts` file `intensity`; the fourth column is
    otherwise called `column_4`, and so on. Pickled numpy arrays are refused, never unpickled.

    Args:
        path: the file; its suffix (one of `SUFFIXES`) names the format, and the content must agree.
        columns: names of the columns of a text file or of an (N, C) array; `x`, `y`, `z` must be among them.
        num_points: points sampled from a mesh, uniformly by area.
        mesh: "sample" gives points on the faces with the normals of the faces, other attributes from the nearest
            corner; "vertices" gives the vertices of the mesh as they are.
        seed: of the sampling.
        drop_invalid: leave out points with NaN or infinite coordinates (depth cameras write them) instead of raising.

    Raises:
        DatasetBrokenError: the file is missing, empty, truncated, of another format, or has NaN or infinite
            coordinates; the message names file and reason.
    """
    path = Path(path)
    if mesh not in ("sample", "vertices"):
        raise ValueError(f"expected mesh to be sample or vertices, but got {mesh!r}")
    if num_points < 1:
        raise ValueError(f"expected num_points >= 1, but got {num_points}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DatasetBrokenError(path, f"expected one of {', '.join(SUFFIXES)}, but got {path.suffix or 'no suffix'}")
    try:
        _check_signature(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy on empty lines; what matters is raised
            content = reader(path, columns)
        fields, faces = content if isinstance(content, tuple) else (content, None)
        pos, attributes = assemble(fields)
        if faces is not None and mesh == "sample":
            check_finite(path, "coordinates", pos)
            pos, attributes = file_mesh.sample(pos, attributes, faces, num_points, seed)
    except DatasetBrokenError:
        raise
    except OSError as error:
        raise DatasetBrokenError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise DatasetBrokenError(path, " ".join(str(error).split())) from error
    except MemoryError as error:
        raise DatasetBrokenError(path, "it is too large for the memory of this machine") from error
    except ImportError as error:
        raise DatasetError(f"reading {path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # whatever damaged bytes make the libraries below raise
        reason = " ".join(str(error).split())
        raise DatasetBrokenError(path, f"it cannot be read ({type(error).__name__}: {reason})") from error
    if not len(pos):
        raise DatasetBrokenError(path, "expected points, but it has none")
    if drop_invalid:
        valid = np.isfinite(pos).all(axis=1)
        if not valid.any():
            raise DatasetBrokenError(path, "expected finite coordinates, but no point has them")
        pos, attributes = pos[valid], {name: values[valid] for name, values in attributes.items()}
    check_finite(path, "coordinates", pos)
    return Cloud(pos, attributes)


def check_finite(path: Path, name: str, values: np.ndarray) -> None:
    """Raise `DatasetBrokenError` if one of the values (N,) or (N, C), called `name`, is NaN or infinite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        bad = len(values) - int(finite.sum())
        more = f" (and {bad - 1} more)" if bad > 1 else ""
        raise DatasetBrokenError(path, f"expected finite {name}, but point {int(finite.argmin())}{more} has NaN or inf")


def write_ply(path: str | Path, cloud: Cloud, *, overwrite: bool = False) -> None:
    """Write a cloud as binary little-endian PLY with all its attributes; the file appears at once and complete.

    Args:
        path: the file; its folder must exist.
        cloud: positions and attributes. Integers of 64 bits are stored in 32, the widest that PLY has.
        overwrite: replace a file that is there already.

    Raises:
        FileExistsError: the file is there, and `overwrite` is false.
        ValueError: the cloud cannot be stored: attributes of another length, text, integers beyond 32 bits.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"expected a new file, but {path} exists already")
    with replacing(path) as temporary:
        file_ply.write(temporary, cloud.pos, cloud.attributes)


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
