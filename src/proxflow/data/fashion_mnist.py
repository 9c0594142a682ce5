"""Fashion-MNIST: photographs of clothes in ten classes, with the number and size of MNIST's digits.

"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms" (Xiao et al., 2017), arXiv 1708.07747.
Authors: Han Xiao, Kashif Rasul and Roland Vollgraf, Zalando SE; licence MIT. It is not in this package, but in
Debian's and Ubuntu's package ``dataset-fashion-mnist``, whose original IDX files are read.
"""

from __future__ import annotations

from pathlib import Path

from proxflow.data.idx import Split, read_folder
from proxflow.data.images import ImageData
from proxflow.errors import DataError

FOLDER = Path("/usr/share/datasets/fashion-mnist")

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""Names of the classes 0 to 9, as given by the authors."""

# Of the uncompressed original files.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def load_fashion_mnist(split: Split, folder: Path | None = None) -> ImageData:
    """Read a split of Fashion-MNIST: images (N, 1, 28, 28) and labels 0 to 9, N = 60,000 (train) or 10,000 (test).

    Args:
        split: "train" or "test".
        folder: Folder of the four files, plain or gzipped; ``None`` for the folder of Debian's package.

    Raises:
        DataError: The folder or a file is missing, or a file's content has another sha256 than the original.
    """
    folder = FOLDER if folder is None else folder
    if not folder.is_dir():
        raise DataError(
            f"Fashion-MNIST is not installed: expected it in {folder}. On Debian and Ubuntu, apt-get install "
            "dataset-fashion-mnist puts it there; elsewhere, give the folder with its four IDX files instead of the name "
            "fashion-mnist (./fashion-mnist is a folder)"
        )
    return read_folder(folder, split, "fashion-mnist", SHA256)
