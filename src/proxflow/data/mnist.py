"""The MNIST database of handwritten digits, embedded in the package.

60,000 training and 10,000 test images of 28 × 28 grey levels, "Gradient-based learning applied to document recognition"
(LeCun et al., 1998). Authors of the database: Yann LeCun and Corinna Cortes; licence CC BY-SA 3.0, see ``files/LICENSE``
beside the data. The files are the original IDX files, compressed with xz.
"""

from __future__ import annotations

from pathlib import Path

from proxflow.data.idx import Split, assemble, file_names, read_idx
from proxflow.data.images import ImageData

_FILES = Path(__file__).parent / "files"

# Checksums of the uncompressed original files, so that any copy can be compared.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_mnist(split: Split, folder: Path = _FILES) -> ImageData:
    """Read the embedded MNIST: images (N, 1, 28, 28) and labels 0 to 9, N = 60,000 (train) or 10,000 (test).

    Raises:
        DataError: A file is missing or its content has another sha256 than the original.
    """
    image_name, label_name = file_names(split)
    images = read_idx(folder / f"{image_name}.xz", 3, SHA256[image_name])
    labels = read_idx(folder / f"{label_name}.xz", 1, SHA256[label_name])
    return assemble("mnist", images, labels, str(folder))
