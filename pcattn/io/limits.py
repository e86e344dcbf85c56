"""Limits on what comes out of a compressed file, because files from strangers must not fill the memory."""

from pcattn.utils.errors import InputError

_MOST = 1032  # bytes that deflate can make of one
_SMALL = 1 << 28  # bytes that fit any machine
_LARGE = 64  # times the size of the file: labels compress well, but coordinates beside them hardly do


def check_expansion(name: str, size: int, stored: int, file_size: int) -> None:
    """Refuse an array that is larger than its compressed bytes can hold, or that only a bomb would hold.

    Args:
        name: of the array.
        size: its size in bytes, as the file says.
        stored: the number of its compressed bytes.
        file_size: the size of the whole file in bytes.

    Raises:
        InputError: it is.
    """
    if size > _MOST * stored or size > max(_SMALL, _LARGE * file_size):
        raise InputError(f"expected an array {name} that fits its {stored} bytes in the file, but got {size} bytes")
