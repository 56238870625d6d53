"""Read the rows of a Parquet file as a stream."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mergemoe.calibration.text_rows import ROWS, TEXT, check_file, too_large, unreadable
from mergemoe.errors import UserError

AT_ONCE = 256  # rows


def read_parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of a row, from 1, and what it has in some columns.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read, is damaged, is too large, or lacks a column.
    """
    try:
        from pyarrow import ArrowException, parquet  # of the extra `eval`; other files do not need it
    except ImportError:
        raise UserError(f"{path}: Parquet files need the package pyarrow. Run `pip install pyarrow`") from None
    check_file(path)
    number = 1
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [field for field in fields if field not in names]:
                listed = ", ".join(map(repr, names[:8])) or "none"
                raise UserError(
                    f"{path}: has no column {missing[0]!r}. Its columns are {listed}. Name the column of the text "
                    "(`field` in params.yaml)"
                )
            if file.metadata.num_rows > ROWS:
                raise too_large(path, f"{ROWS:,} rows")
            size = 0
            for batch in file.iter_batches(batch_size=AT_ONCE, columns=list(fields)):
                if (size := size + batch.nbytes) > TEXT:
                    raise too_large(path, f"{TEXT:,} bytes of text")
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (ArrowException, OSError, ValueError) as error:
        raise unreadable(path, number, error) from None
