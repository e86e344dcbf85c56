"""What torch saves, as bytes to write and read as tensors and plain data alone."""

import io
import os
import zipfile
from typing import Any

import torch

from pcattn.utils.errors import InputError


def pack(content: Any) -> memoryview:
    """The bytes of a file of `torch.save`, to be written in one piece (`pcattn.utils.files.write_bytes`)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """What a file holds, on the CPU; nothing in it is run.

    Raises:
        pickle.UnpicklingError: it holds other objects.
        InputError: it unpacks to more than the file has. torch compresses nothing.
        Exception: whatever else a file of another kind makes torch raise.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > os.path.getsize(path):
            raise InputError(f"{size} bytes in a file of {os.path.getsize(path)}")
    return torch.load(path, weights_only=True, map_location="cpu")
