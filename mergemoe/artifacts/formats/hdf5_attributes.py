"""Text in the attributes of HDF5 files, always of a fixed length.

HDF5 keeps text of variable length in a global heap, which its library reads without an end if an object's size there is
damaged (HDF5 2.0, H5HG__cache_heap_deserialize). Text of a fixed length stands in the attribute itself.
"""

from typing import Any

import numpy as np


def write_attribute(owner: Any, name: str, text: str) -> None:
    """Give an HDF5 file or dataset an attribute."""
    owner.attrs[name] = np.bytes_(text.encode())


def read_attribute(owner: Any, name: str) -> str:
    """Return the text of an attribute.

    Raises:
        ValueError: if it is anything else, before it is read.
        KeyError: if it is not there.
    """
    from h5py import h5t  # not every study has captures left

    found = owner.attrs.get_id(name)
    kind = found.get_type()
    if not isinstance(kind, h5t.TypeStringID) or kind.is_variable_str() or found.shape != ():
        raise ValueError(f"the attribute {name} is no text of a fixed length")
    return owner.attrs[name].decode()
