"""Labelled images: from folders, CSV files and sets known by name, as data sets of tensors.

Knows files, labels and splits, nothing of models or mixes. May import no other folder.

To read in this order: `images` (find image files, check and open them), `splits` (labelled images,
and their train, val and test parts), `layout` (which folders are parts, which are classes),
`folders` (class folders), `csv_table` (what stands in a CSV file), `csv_file` (its paths and
labels), `named` (sets of timm, and the digits), `load` (whatever DATA stands for, as tensors),
`degrade` (fewer images and wrong labels, on purpose).
"""

from manifold_mixup.data.csv_file import check_columns
from manifold_mixup.data.degrade import check_harder, describe_harder, harden
from manifold_mixup.data.folders import check_images, telling_damaged
from manifold_mixup.data.images import (
    describe_damaged,
    find_damaged,
    is_image,
    open_image,
    walk_files,
)
from manifold_mixup.data.load import ImageSet, is_csv, list_data, load_data
from manifold_mixup.data.named import NamedImage
from manifold_mixup.data.splits import (
    LabelledImages,
    Split,
    about_copies,
    join_splits,
    split_images,
)

__all__ = [
    "LabelledImages",
    "ImageSet",
    "NamedImage",
    "Split",
    "about_copies",
    "check_columns",
    "check_harder",
    "check_images",
    "describe_damaged",
    "describe_harder",
    "find_damaged",
    "harden",
    "is_csv",
    "is_image",
    "join_splits",
    "list_data",
    "load_data",
    "open_image",
    "split_images",
    "telling_damaged",
    "walk_files",
]
