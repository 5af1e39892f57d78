"""Images: MedMNIST-layout .npz and folders of PNG and JPEG files."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from fedfm.config import DomainConfig
from fedfm.domains.formats import read_source
from fedfm.domains.formats.images import decode
from fedfm.errors import DataError

IMAGES = DomainConfig(task="image-classification")
RESIZED = DomainConfig.model_validate({"task": "image-classification", "image-size": 6})


def arrays(**changes) -> dict[str, np.ndarray]:
    """A small valid .npz: 8, 2, 4 grey 5 x 4 images, no two alike, of two named classes; None takes an array out."""
    rng = np.random.default_rng(0)
    content = {"label_names": np.array(["normal", "ill"]), "ood_test_images": np.zeros(3)}
    for split, size in (("train", 8), ("val", 2), ("test", 4)):
        content[f"{split}_images"] = rng.integers(0, 256, (size, 5, 4), np.uint8)
        content[f"{split}_labels"] = np.arange(size, dtype=np.uint8)[:, None] % 2
    return {name: array for name, array in (content | changes).items() if array is not None}


def npz(folder, **changes):
    np.savez(folder / "x.npz", **arrays(**changes))
    return folder / "x.npz"


def png(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def refusal(path, settings=IMAGES) -> str:
    with pytest.raises(DataError) as error:
        read_source(path, settings, 0)
    return str(error.value).replace(f"{path}/", "").replace(str(path), "PATH")


def test_npz(tmp_path):
    data = read_source(npz(tmp_path), IMAGES, 0)
    assert data.labels == ("normal", "ill")
    assert data.train.inputs.shape == (8, 5, 4, 1) and data.train.inputs.dtype == np.uint8
    assert data.train.labels.tolist() == [0, 1] * 4 and data.train.labels.dtype == np.int64
    np.testing.assert_array_equal(data.test.inputs[..., 0], arrays()["test_images"])
    assert data.warnings == ()


def test_npz_in_colour_without_names(tmp_path):
    colour = np.arange(8 * 5 * 4 * 3, dtype=np.uint8).reshape(8, 5, 4, 3)
    labels = np.array([3, 9, 10, 3, 9, 10, 3, 9])
    changes = {"label_names": None, "train_images": colour, "train_labels": labels}
    changes |= {"val_labels": np.array([3, 9]), "test_labels": np.array([9, 3, 9, 10])}
    data = read_source(npz(tmp_path, **changes), IMAGES, 0)
    assert data.labels == ("3", "9", "10") and data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(data.train.inputs, colour)
    grey = arrays()["val_images"]
    np.testing.assert_array_equal(data.validation.inputs, np.stack([grey] * 3, axis=-1))


def zipped(path, **members: bytes):
    """A .npz whose members are these bytes."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(shape: str) -> bytes:
    said = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said


@pytest.mark.parametrize("content", [b"plain bytes", header("(1000000000000,)"), header("(((")])
def test_a_damaged_npz_is_told_as_one(tmp_path, content):
    assert "a damaged .npz file" in refusal(zipped(tmp_path / "x.npz", train_images=content))


def test_an_encrypted_npz_is_told_as_a_damaged_one(tmp_path):
    path = npz(tmp_path)
    content = bytearray(path.read_bytes())
    for sign, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of each header of the archive
        place = -1
        while (place := content.find(sign, place + 1)) >= 0:
            content[place + flags] |= 1
    path.write_bytes(content)
    assert "password" in refusal(path)


def test_names_that_are_not_utf8(tmp_path):
    for label in ("a", "b"):
        for number in range(3):
            png(tmp_path / "images" / label / f"{number}.png", np.full((4, 4), number))
    strange = os.fsdecode(b"sch\xe4del.png")
    (tmp_path / "images" / "a" / "0.png").rename(tmp_path / "images" / "a" / strange)
    text = refusal(tmp_path / "images")
    assert "is not UTF-8" in text and "rename it" in text
    assert "half a character" in refusal(npz(tmp_path, label_names=np.array(["a", "b\ud83d"])))


def test_what_a_plugin_of_pillow_cannot_decode(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Failed to decode image")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(ValueError, match="an image that cannot be read: Failed to decode image"):
        decode(b"")


def test_npz_without_validation(tmp_path):
    data = read_source(npz(tmp_path, val_images=None, val_labels=None), IMAGES, 0)
    assert [len(split) for split in data.splits().values()] == [7, 1, 4]
    assert data.warnings[0].startswith("the source has no validation split: a seeded stratified draw took 1 training")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"train_images": np.zeros((8, 5, 4), np.float32)}, ["PATH, train_images: float32 values", "0..255"]),
        ({"train_images": np.zeros((8, 0, 4), np.uint8)}, ["PATH, train_images: shape (8, 0, 4): images of no pixels"]),
        ({"train_images": np.uint8(0)}, ["PATH, train_images: shape ()"]),
        ({"test_images": np.zeros((4, 5, 4, 4), np.uint8)}, ["PATH, test_images: shape (4, 5, 4, 4)", "N x H x W x 3"]),
        ({"train_labels": np.zeros((8, 14), np.uint8)}, ["PATH, train_labels: shape (8, 14)", "one class"]),
        ({"train_labels": np.zeros(8)}, ["PATH, train_labels: float64 values"]),
        (
            {"val_labels": np.zeros(5, int), "test_labels": np.zeros(1, int)},
            ["val_labels: 5 labels for 2 images", "test_labels: 1 labels for 4 images"],
        ),
        (
            {"train_labels": np.array([0, 1, 2, 0, 0, 0, 0, 7])},
            ["train_labels, index 2: label 2 is out of range", "index 7: label 7", "label_names has 2 names"],
        ),
        ({"label_names": None, "val_labels": np.array([0, -1])}, ["val_labels, index 1: label -1 is out of range"]),
        (
            {"train_labels": None, "train_label": np.zeros(8, int)},
            ['no array "train_labels". did you mean "train_label"? Arrays here: label_names'],
        ),
        ({"train_labels": np.zeros(8, int)}, ['the training split has a single class, "normal"']),
        (
            {"train_images": np.zeros((0, 5, 4), np.uint8), "train_labels": np.zeros(0, int)},
            ["PATH: the training split is empty"],
        ),
        (
            {"label_names": np.array(["a", "b", "c"]), "test_labels": np.array([0, 1, 0, 2])},
            ['test_labels, index 3: "c" appears in test and never in train'],
        ),
        (
            {"test_images": np.zeros((4, 6, 6), np.uint8)},
            ["images of 2 sizes, height x width: 5 x 4 (", "6 x 6 (", "set image-size"],
        ),
    ],
)
def test_refusals_of_npz(tmp_path, changes, messages):
    text = refusal(npz(tmp_path, **changes))
    for message in messages:
        assert message in text


def test_npz_with_python_objects_or_no_npz_at_all(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=np.array([{}], dtype=object))
    assert "it holds Python objects, which can run code when loaded" in refusal(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"hello")
    assert "PATH: not an .npz file" in refusal(tmp_path / "x.npz")
    content = npz(tmp_path).read_bytes()
    (tmp_path / "x.npz").write_bytes(content[:200] + bytes(8) + content[208:])
    assert "PATH: a damaged .npz file: " in refusal(tmp_path / "x.npz")


def test_resizing_is_pillows_bilinear(tmp_path):
    data = read_source(npz(tmp_path), RESIZED, 0)
    expected = Image.fromarray(arrays()["train_images"][3]).resize((6, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.train.inputs[3, :, :, 0], np.asarray(expected))
    assert data.test.inputs.shape == (4, 6, 6, 1)


def test_folder_with_splits(tmp_path):
    for number, (split, count) in enumerate([("train", 3), ("valid", 1), ("test", 1)]):
        for index in range(count):
            png(tmp_path / split / "cat" / f"{index}.png", np.full((4, 4), 10 * number + index))
            png(tmp_path / split / "dog" / f"{index}.jpg", np.full((4, 4), 100 + 10 * number + index))
    (tmp_path / "train" / ".hidden").mkdir()
    data = read_source(tmp_path, IMAGES, 0)
    assert data.labels == ("cat", "dog") and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.inputs.shape == (6, 4, 4, 1) and data.train.inputs[2, 0, 0, 0] == 2
    assert [len(split) for split in data.splits().values()] == [6, 2, 2] and data.warnings == ()


def test_folders_named_training_and_testing_are_splits_and_others_are_told_of(tmp_path):
    for split, shade in (("Training", 0), ("Testing", 9)):
        for label in ("glioma", "none"):
            for number in range(4):
                png(tmp_path / split / label / f"{number}.png", np.full((6, 6), shade + number))
    png(tmp_path / "extra" / "glioma" / "0.png", np.zeros((6, 6)))
    data = read_source(tmp_path, IMAGES, 0)
    assert data.labels == ("glioma", "none")
    assert len(data.train) + len(data.validation) == 8 and sorted(set(data.test.inputs.ravel())) == [9, 10, 11, 12]
    assert data.warnings[0] == "beside train, test these folders are no splits, and not read: extra"
    (tmp_path / "eval").mkdir()
    assert '"Testing" and "eval" both look like the test split' in refusal(tmp_path)


def test_of_folders_for_a_split_the_one_with_its_own_name_is_read(tmp_path):
    for shade, split in enumerate(["train", "val", "validation", "eval", "test"]):
        for label in ("a", "b"):
            png(tmp_path / split / label / "0.png", np.full((4, 4), shade))
    png(tmp_path / "extra" / "a" / "0.png", np.zeros((4, 4)))
    data = read_source(tmp_path, IMAGES, 0)
    assert [set(split.inputs.ravel()) for split in data.splits().values()] == [{0}, {2}, {4}]
    assert data.warnings[:3] == (
        '"val" is not used: "validation" is the validation split',
        '"eval" is not used: "test" is the test split',
        "beside train, validation, test these folders are no splits, and not read: extra",
    )


def test_images_that_the_memory_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 1000}))
    many = RESIZED.model_copy(update={"image_size": 12})
    text = refusal(npz(tmp_path), many)
    assert "8 images of 12 x 12 x 1 bytes are 0 GB, more than the memory" in text and "image-size" in text
    assert len(read_source(npz(tmp_path), RESIZED, 0).train) == 8  # 288 bytes


def test_folder_of_labels_in_mixed_colours_and_sizes(tmp_path):
    for index in range(10):
        png(tmp_path / "a" / f"{index}.png", np.full((4, 4), index))
        png(tmp_path / "b" / f"{index}.PNG", np.full((6, 3, 3), (index, 50, 60)))
    assert "images of 2 sizes, height x width: 4 x 4 (a/0.png); 6 x 3 (b/0.PNG)" in refusal(tmp_path)
    data = read_source(tmp_path, RESIZED, 0)
    assert data.train.inputs.shape == (14, 6, 6, 3)
    assert [np.bincount(split.labels).tolist() for split in data.splits().values()] == [[7, 7], [1, 1], [2, 2]]
    grey = data.train.inputs[data.train.labels == 0]
    assert (grey == grey[..., :1]).all() and data.warnings == ()
    twice = read_source(tmp_path, RESIZED, 0)
    np.testing.assert_array_equal(twice.test.inputs, data.test.inputs)
    assert twice.sha256 == data.sha256


def test_a_moved_image_changes_the_digest(tmp_path):
    for index in range(4):
        png(tmp_path / "ab"[index % 2] / f"{index}.png", np.full((4, 4), index))
    before = read_source(tmp_path, IMAGES, 0).sha256
    (tmp_path / "a" / "0.png").rename(tmp_path / "b" / "0.png")
    assert read_source(tmp_path, IMAGES, 0).sha256 != before


def test_unreadable_images_and_folders_without_any(tmp_path):
    png(tmp_path / "a" / "0.png", np.zeros((4, 4)))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    (tmp_path / "a" / "2.jpg").write_text("no image")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a" / "3.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scan.dcm").write_text("")
    text = refusal(tmp_path)
    assert "a/1.png: an image that cannot be read: " in text
    assert "a/2.jpg: an image that cannot be read: cannot identify image file" in text
    assert "a/3.png: more than 8 bits a pixel (mode I;16)\n    mend: replace it by an 8-bit PNG" in text
    assert "b: no PNG or JPEG image here; found .dcm\n    mend: convert the images to PNG" in text


def test_folder_with_test_and_no_train(tmp_path):
    png(tmp_path / "test" / "a" / "0.png", np.zeros((4, 4)))
    assert "no train split here; found: test" in refusal(tmp_path)


def test_decode_drops_alpha_and_keeps_grey(tmp_path):
    png(tmp_path / "x.png", np.full((2, 3, 4), (1, 2, 3, 128)))
    assert decode((tmp_path / "x.png").read_bytes())[0, 0].tolist() == [1, 2, 3]
    Image.new("LA", (3, 2), (7, 128)).save(tmp_path / "y.png")
    assert decode((tmp_path / "y.png").read_bytes()).tolist() == [[7, 7, 7]] * 2
