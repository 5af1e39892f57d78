"""Datasets of the Hugging Face hub, through the `datasets` package where it is installed."""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa

from fedfm.config import DomainConfig
from fedfm.domains.formats.arrow import source_from_tables
from fedfm.domains.reading import RawSource, Reading, splits_among
from fedfm.errors import DataError


def is_hub_id(source: str) -> bool:
    """`owner/name`: what a missing path may have meant, unless it ends like a file."""
    looks_like_file = re.search(r"\.(csv|jsonl|ndjson|parquet|npz|conll|txt|bio|iob)$", source, re.IGNORECASE)
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None and not looks_like_file


def read_hub(hub_id: str, settings: DomainConfig, reading: Reading) -> tuple[RawSource, str]:
    """The dataset and the SHA-256 of its columns. DataError when `datasets` is missing or cannot get it."""
    try:
        import datasets
    except ImportError:
        what = "no such file or folder, and datasets of the hub need the package `datasets`"
        mend = "correct the path (relative ones start at data-root), or pip install 'fedfm[hub]'"
        raise DataError(what, where=hub_id, mend=mend) from None
    try:
        found = datasets.load_dataset(hub_id)
    except Exception as error:  # the package raises whatever its many back ends do
        what = f"no such file or folder, and the hub gave no dataset: {str(error).partition(chr(10))[0]}"
        mend = "fedfm runs offline (HF_HUB_OFFLINE=1): load it once with datasets.load_dataset, or give a local path"
        raise DataError(what, where=hub_id, mend=mend) from None
    tables = {
        split: (found[name].with_format("arrow")[:], found[name].features.to_dict(), f"{hub_id}, {name}")
        for split, name in splits_among(list(found), reading).items()
    }
    return source_from_tables(tables, settings, reading, whole=False), _sha256([tables[s][0] for s in sorted(tables)])


def _sha256(tables: list[pa.Table]) -> str:
    digest = hashlib.sha256()
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()
