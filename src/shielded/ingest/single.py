# SPDX-License-Identifier: Apache-2.0
"""One picture in a file of its own."""

from collections.abc import Iterator

from shielded.ingest.picture import Picture, clean, read_file


class Single:
    """The picture at `path`; its id is `name`."""

    def __init__(self, path: str, name: str):
        self.path, self.name = path, name
        self.share = 0.0

    def __iter__(self) -> Iterator[Picture]:
        yield Picture(self.name, clean(self.path), lambda: read_file(self.path))
        self.share = 1.0
