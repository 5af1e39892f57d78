"""Images with a label each: MedMNIST-layout `.npz` files and folders of PNG and JPEG files."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from fedfm.config import DomainConfig
from fedfm.domains.reading import RawSource, RawSplit, Reading, by_split, require_train, split_of
from fedfm.errors import DataError, did_you_mean

SUFFIXES = (".png", ".jpg", ".jpeg")
NPZ_PREFIXES = {"train": "train", "validation": "val", "test": "test"}
DAMAGED = (  # what numpy and zipfile raise for a file with holes, a password, a header of nonsense
    ValueError, EOFError, RuntimeError, SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
_GREY_MODES = ("1", "L", "LA")
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "F")


def is_npz(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".npz"


def is_image_folder(path: Path) -> bool:
    """Some file below the sub-folders is a PNG or a JPEG."""
    return path.is_dir() and any(_is_image(file) for file in path.glob("*/**/*"))


def read_npz(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    """`train_images`, `train_labels`, `val_...`, `test_...` and, if there, `label_names`; other keys are ignored.

    Layout: MedMNIST v2 (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8): uint8 [N, H, W] or [N, H, W, 3].
    """
    reading.digest(path)
    arrays, found = _load_npz(path)
    names = [str(name) for name in arrays["label_names"].tolist()] if "label_names" in arrays else None
    for name in names or ():
        reading.is_whole(name, f"{path}, label_names")
    splits = {}
    for split, prefix in NPZ_PREFIXES.items():
        present = [key for key in (f"{prefix}_images", f"{prefix}_labels") if key in arrays]
        if not present and split != "train":
            continue
        if len(present) == 2:
            splits[split] = _npz_split(arrays, prefix, names, path, reading)
        for key in {f"{prefix}_images", f"{prefix}_labels"} - set(present):
            what = f'no array "{key}".{did_you_mean(key, found)} Arrays here: {", ".join(found)}'
            reading.problem(what, str(path), "save it under the names of the MedMNIST layout")
    reading.refuse()
    return RawSource(unify(splits, settings.image_size, reading), tuple(names) if names else None)


def _load_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of the layout, and the names of all that are there."""
    known = {f"{prefix}_{kind}" for prefix in NPZ_PREFIXES.values() for kind in ("images", "labels")} | {"label_names"}
    if not zipfile.is_zipfile(path):
        raise DataError("not an .npz file", where=str(path), mend="save the arrays with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in known}
            if foreign := next((key for key, value in arrays.items() if not isinstance(value, np.ndarray)), ""):
                raise ValueError(f"{foreign} is no array")
            return arrays, list(file.files)
    except DAMAGED as error:
        pickled = "allow_pickle" in str(error)
        what = "it holds Python objects, which can run code when loaded" if pickled else f"a damaged .npz file: {error}"
        raise DataError(what, where=str(path), mend="save plain arrays with numpy.savez") from None


def _npz_split(
    arrays: Mapping[str, np.ndarray], prefix: str, names: Sequence[str] | None, path: Path, reading: Reading
) -> RawSplit:
    images, labels, where = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"], f"{path}, {prefix}_labels"
    before = len(reading.problems)
    _check_images(images, f"{path}, {prefix}_images", reading)
    if len(reading.problems) == before:
        _check_labels(labels, len(images), names, where, reading)
    if len(reading.problems) > before:
        return RawSplit(images, [], str)
    texts = [names[label] if names else str(label) for label in labels.reshape(-1).tolist()]
    return RawSplit(images, texts, lambda index, word=0: f"{where}, index {index}")


def _check_images(images: np.ndarray, where: str, reading: Reading) -> None:
    if images.dtype != np.uint8:
        reading.problem(f"{images.dtype} values", where, "scale the images to 0..255 and save them as uint8")
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] in (1, 3)):
        reading.problem(f"shape {images.shape}", where, "images are N x H x W (grey) or N x H x W x 3 (RGB)")
    elif 0 in images.shape[1:3]:
        reading.problem(f"shape {images.shape}: images of no pixels", where, "save the images with their pixels")


def _check_labels(
    labels: np.ndarray, num_images: int, names: Sequence[str] | None, where: str, reading: Reading
) -> None:
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.shape[1] == 1):
        reading.problem(f"shape {labels.shape}", where, "labels are N or N x 1: one class for each image")
    elif labels.dtype.kind not in "iu":
        reading.problem(f"{labels.dtype} values", where, "labels are whole numbers")
    elif len(labels) != num_images:
        reading.problem(f"{len(labels)} labels for {num_images} images", where, "save one label for each image")
    else:
        flat = labels.reshape(-1)
        wrong = (flat < 0) | (flat >= len(names)) if names else flat < 0
        known = f"label_names has {len(names)} names" if names else "labels start at 0"
        for index in np.flatnonzero(wrong):
            reading.problem(f"label {flat[index]} is out of range", f"{where}, index {index}", known)


def read_image_folder(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    """`train/<label>/*.png` (and `val`, `test`), or `<label>/*.png` in a folder that knows no splits."""
    folders = by_split(_sub_folders(path), reading)
    if folders:
        require_train(folders, path)
        others = [folder.name for folder in _sub_folders(path) if split_of(folder.name) is None]
        if others:
            names = f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
            reading.warnings.append(f"beside {', '.join(folders)} these folders are no splits, and not read: {names}")
    splits = {split: _read_labels(folder, reading) for split, folder in (folders or {"train": path}).items()}
    reading.refuse()
    return RawSource(unify(splits, settings.image_size, reading), whole=not folders)


def _read_labels(folder: Path, reading: Reading) -> RawSplit:
    images, labels, files = [], [], []
    for label_folder in _sub_folders(folder):
        found = [file for file in sorted(label_folder.rglob("*")) if _is_image(file)]
        if not found:
            others = sorted({file.suffix for file in label_folder.rglob("*") if file.is_file()})
            what = f"no PNG or JPEG image here{'; found ' + ', '.join(others) if others else ''}"
            reading.problem(what, str(label_folder), "convert the images to PNG, or remove the folder")
        for file in found:
            try:
                images.append(decode(reading.bytes(file)))
            except ValueError as error:
                reading.problem(str(error), str(file), "replace it by an 8-bit PNG or JPEG file, or remove it")
                continue
            labels.append(label_folder.name)
            files.append(file)
    return RawSplit(images, labels, lambda index, word=0: str(files[index]))


def decode(content: bytes) -> np.ndarray:
    """uint8 [H, W] of a grey image, [H, W, 3] of any other. ValueError when the bytes are no 8-bit image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            # Pillow clips 16 bits to 255, it does not scale them: a white square would come back
            if image.mode in _SIXTEEN_BITS:
                raise ValueError(f"more than 8 bits a pixel (mode {image.mode})")
            return np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <")[0]  # Pillow names its memory object
        raise ValueError(f"an image that cannot be read: {reason}") from None


def unify(splits: Mapping[str, RawSplit], image_size: int, reading: Reading) -> dict[str, RawSplit]:
    """Every split's images as one uint8 array [N, H, W, C], C = 1 when all are grey, else 3.

    With `image_size` > 0 each image is resized to that square, bilinear; without, one size in all the source is
    demanded: any other becomes a problem.
    """
    if not image_size:
        _check_sizes(splits, reading)
        if reading.problems:
            return dict(splits)
    channels = 1 if all(_is_grey(image) for raw in splits.values() for image in raw.inputs) else 3
    height, width = image_size, image_size
    for image in (image for raw in splits.values() for image in raw.inputs[:1] if not image_size):
        height, width = image.shape[:2]
    unified = {}
    for split, raw in splits.items():
        pixels = _room((len(raw.labels), height, width, channels), raw.where)
        for index, image in enumerate(raw.inputs):
            pixels[index] = _with_channels(_resize(image, image_size))
        unified[split] = RawSplit(pixels, raw.labels, raw.where)
    return unified


def _room(shape: tuple[int, int, int, int], where: Callable[..., str]) -> np.ndarray:
    """Memory for images uint8 [N, H, W, C]. Raises DataError where the machine has not as much."""
    needed = float(np.prod(shape, dtype=np.float64))
    if needed > psutil.virtual_memory().total:
        count, height, width, channels = shape
        size = f"{count} images of {height} x {width} x {channels} bytes"
        what = f"{size} are {needed / 1e9:.0f} GB, more than the memory"
        raise DataError(what, where=where(0), mend="set image-size to a smaller number")
    return np.empty(shape, np.uint8)


def _check_sizes(splits: Mapping[str, RawSplit], reading: Reading) -> None:
    first_of: dict[tuple[int, int], str] = {}
    for raw in splits.values():
        for index, image in enumerate(raw.inputs):
            if image.shape[:2] not in first_of:
                first_of[image.shape[:2]] = raw.where(index)
    if len(first_of) > 1:
        sizes = "; ".join(f"{height} x {width} ({where})" for (height, width), where in list(first_of.items())[:5])
        what = f"images of {len(first_of)} sizes, height x width: {sizes}"
        reading.problem(what, str(reading.root), "set image-size = 64 (say) to resize all of them")


def _is_grey(image: np.ndarray) -> bool:
    return image.ndim == 2 or image.shape[2] == 1


def _with_channels(image: np.ndarray) -> np.ndarray:
    return image[:, :, None] if image.ndim == 2 else image  # one channel is copied to three by broadcasting


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    if not size or image.shape[:2] == (size, size):
        return image
    plain = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    return np.asarray(Image.fromarray(plain).resize((size, size), Image.Resampling.BILINEAR))


def _sub_folders(path: Path) -> list[Path]:
    return [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
