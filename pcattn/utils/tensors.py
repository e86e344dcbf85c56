"""Read and write files of `torch.save` without running code."""

import io
import os
import zipfile
from typing import Any

import torch

from pcattn.utils.errors import InputError


def pack(content: Any) -> memoryview:
    """The bytes of a `torch.save` file, for `pcattn.utils.files.write_bytes`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Load tensors and plain data from a `torch.save` file, on the CPU.

    Raises:
        pickle.UnpicklingError: the file holds other objects.
        InputError: the file would unpack to more bytes than it has, although torch never compresses.
        Exception: any other error of torch, for a file in another format.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.path.getsize(path):
            raise InputError(f"expected at most {os.path.getsize(path)} bytes in {path}, but got {size}")
    return torch.load(path, weights_only=True, map_location="cpu")
