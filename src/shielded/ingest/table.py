# SPDX-License-Identifier: Apache-2.0
"""The pictures of a Parquet file with image bytes."""

from collections.abc import Iterator
from typing import Any

from shielded.errors import BadInput, MissingExtra
from shielded.ingest.picture import LIMIT_BYTES, TOO_LARGE, Item, Picture, Skipped, clean

SUFFIXES = (".parquet",)
COLUMNS = ("image", "img", "picture")  # the first of these, else the only one that holds bytes
KEYS = ("id", "key", "__key__")  # a column with ids, else the number of the row
ROWS = 16  # read together


class Table:
    """Every picture of a Parquet file: {bytes, path} as the datasets library writes, or bytes.

    The id is the row's own where there is a column id, key or __key__, else `name`/row number.
    """

    def __init__(self, path: str, name: str):
        self.path, self.name = path, name
        self.share = 0.0

    def __iter__(self) -> Iterator[Item]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtra(
                "Parquet files need pyarrow: pip install 'shielded-diffusion[protect]'."
            ) from error
        damage = (pa.ArrowException, OSError, ValueError)
        try:
            with pq.ParquetFile(self.path) as file:
                image, key = self._columns(file.schema_arrow)
                total, first = file.metadata.num_rows, 0
                for group in range(file.num_row_groups):
                    size, row = file.metadata.row_group(group).num_rows, first
                    try:
                        for values in _rows(file, group, [image, *key]):
                            yield self._row(row, values[image], values[key[0]] if key else None)
                            row += 1
                            self.share = row / total
                    except damage as error:
                        yield Skipped(
                            f"{self.name}/{row}",
                            f"rows {row} to {first + size - 1}: {_brief(error)}",
                        )
                    first += size
        except BadInput as error:
            yield Skipped(self.name, str(error))
        except damage as error:
            yield Skipped(self.name, f"cannot be read as Parquet ({_brief(error)})")

    def _columns(self, schema: Any) -> tuple[str, list[str]]:
        """The column with the pictures, and the one with the ids if there is one."""
        holding = [field.name for field in schema if _holds_bytes(field.type)]
        named = [name for name in COLUMNS if name in holding]
        if not named and len(holding) != 1:
            names = ", ".join(schema.names)
            raise BadInput(f"no column image with {{bytes, path}} or bytes among its {names}")
        return (named or holding)[0], [name for name in KEYS if name in schema.names][:1]

    def _row(self, row: int, value: Any, key: Any) -> Item:
        name = f"{self.name}/{row}" if key in (None, "") else clean(str(key))
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            return Skipped(name, "the row holds no image bytes")
        if len(data) > LIMIT_BYTES:
            return Skipped(name, TOO_LARGE)
        return Picture(name, clean(f"{self.path}/{row}"), lambda: data)


def _rows(file: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120].rstrip(". ")
