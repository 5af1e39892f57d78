"""What a site holds: examples, the formats they are read from, how a source is cut into sites."""

from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.formats import read_source
from fedfm.domains.inspection import CheckReport, check_path
from fedfm.domains.loading import forget_sources, label_counts, load_site
from fedfm.domains.partition import partition, partition_dataset

__all__ = [
    "CheckReport",
    "Dataset",
    "Examples",
    "check_path",
    "forget_sources",
    "label_counts",
    "load_site",
    "partition",
    "partition_dataset",
    "read_source",
]
