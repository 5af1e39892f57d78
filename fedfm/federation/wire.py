"""Arrays as records of a message and back: exact, fast, and never on a sender's word alone."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedfm.arrays import Arrays
from fedfm.profiling import phase

NUMPY = "numpy.ndarray"  # Flower's name for arrays that travel as .npy files
DTYPES = frozenset(
    [
        "bool",
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        "float16",
        "float32",
        "float64",
    ]
)


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, bytes]:
    """The name of a dtype, and what `np.save` writes before the values."""
    stream = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return str(dtype), stream.getvalue()


def _to_array(value: np.ndarray) -> Array:
    """As `Array(value)`: the bytes of a .npy file, whose header is made once for each dtype and shape."""
    dtype, header = _npy_header(value.dtype, value.shape)
    return Array(dtype, value.shape, NUMPY, header + value.tobytes())


def _from_array(array: Array) -> np.ndarray:
    """The values of an array, as a view of its bytes. Raises ValueError for what is not exactly one array of numbers.

    The header must say what the message says, and the bytes be as many as that needs: nothing is allocated, unpickled
    or parsed on a site's word alone. Other headers than `_to_array` writes come from other versions of numpy.
    """
    shape = tuple(array.shape)
    if array.stype != NUMPY or array.dtype not in DTYPES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"it holds an array of {array.dtype} {shape} as {array.stype}, which is none of numbers")
    dtype = np.dtype(array.dtype)
    _, header = _npy_header(dtype, shape)
    start, order = len(header), "C"
    if not array.data.startswith(header):
        start, order = _read_header(array.data, dtype, shape)
    needed, there = math.prod(shape) * dtype.itemsize, len(array.data) - start
    if needed != there:
        raise ValueError(f"it holds an array of {dtype} {shape}, which is {needed} bytes, in {there} bytes")
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape, order=order)


def _read_header(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, Literal["C", "F"]]:
    """Where the values of a .npy file begin, and their order. Raises ValueError where it is of another array."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it holds an array in an unknown version of the format .npy")
    read_shape, is_fortran, read_dtype = np.lib.format.read_array_header_1_0(stream)
    if read_dtype != dtype or read_shape != shape:
        raise ValueError(f"it holds an array of {dtype} {shape} whose bytes say {read_dtype} {read_shape}")
    return stream.tell(), "F" if is_fortran else "C"


def size_of(content: RecordDict | ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Bytes of all names and values of a record, or of all records of a message, before anything of it is decoded.

    The same at both ends of a message, whether its arrays are bytes yet or not: records of what crossed hold it.
    """
    if isinstance(content, Held) and content.held is not None:
        return content.sizes()[1]
    return sum(len(name.encode("utf-8", "replace")) + _size_of_value(value) for name, value in content.items())


def _size_of_value(value: Any) -> int:
    if isinstance(value, Array):
        return len(value.data) + len(value.dtype) + 8 * len(value.shape)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, list):
        return sum(map(_size_of_value, value))
    return size_of(value) if hasattr(value, "items") else 8


class Held(ArrayRecord):
    """A record whose arrays become bytes when somebody first asks for one of them.

    Between a site and a server in one process, or over shared memory, nobody does: what is written as bytes there is
    read again by the next function. Whoever looks into the record, or sends it, finds an ordinary one.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__()
        self.__dict__["held"] = {name: _read_only(value) for name, value in arrays.items()}

    @property
    def held(self) -> Arrays | None:
        """The arrays, not to be written to; None once they are bytes."""
        return self.__dict__.get("held")

    def write(self) -> None:
        """Make them bytes now; what is done to the record from then on is done to those."""
        held, self.__dict__["held"] = self.held, None
        for name, value in (held or {}).items():
            ArrayRecord.__setitem__(self, name, _to_array(value))

    def count_bytes(self) -> int:
        """As that of the bytes, which are not made for it; counted once, the same record goes to many sites."""
        if self.held is None:
            return super().count_bytes()
        return self.sizes()[0]

    def sizes(self) -> tuple[int, int]:
        """What `count_bytes` and `size_of` say while the arrays are held."""
        if "counted" not in self.__dict__:
            counted = whole = 0
            for name, value in self.held.items():
                dtype, header = _npy_header(value.dtype, value.shape)
                values = len(header) + value.nbytes
                counted += len(name) + values
                whole += len(name.encode("utf-8", "replace")) + values + len(dtype) + 8 * value.ndim
            self.__dict__["counted"] = counted, whole
        return self.__dict__["counted"]

    def deflate(self) -> bytes:
        """As an ordinary record, by whose name it is read again at the other end."""
        plain = ArrayRecord()
        for name, value in self.items():
            ArrayRecord.__setitem__(plain, name, value)
        return plain.deflate()


def _after_writing(name: str) -> Callable[..., Any]:
    inner = getattr(ArrayRecord, name)

    @wraps(inner)
    def method(*records: Any) -> Any:
        for record in records:
            if isinstance(record, Held):
                record.write()
        return inner(*records)

    return method


for _name in (
    "__contains__", "__delitem__", "__eq__", "__getitem__", "__iter__", "__len__", "__repr__", "__setitem__", "copy",
    "items", "keys", "values",
):  # fmt: skip
    setattr(Held, _name, _after_writing(_name))


def _read_only(value: np.ndarray) -> np.ndarray:
    view = np.asarray(value, order="C").view()
    view.flags.writeable = False
    return view


@phase("move")
def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """The record of some arrays, which must not be written to any more."""
    return Held(arrays)


def from_record(record: ArrayRecord) -> Arrays:
    """The arrays of a record, which may be views of it and not be written to."""
    if isinstance(record, Held) and record.held is not None:
        return dict(record.held)
    return {name: _from_array(value) for name, value in record.items()}
