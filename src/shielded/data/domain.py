# SPDX-License-Identifier: Apache-2.0
"""Whose server a URL points to, in three readings of "top-level domain"."""

import enum
import re
from functools import lru_cache


class Domain(enum.StrEnum):
    """What counts as one domain: example.co.uk, or img1.example.co.uk, or uk."""

    site = "site"
    host = "host"
    top = "top"


# Second labels below which countries register names: example.co.uk is one site, co.uk is none.
REGISTRIES = frozenset(
    "ac co com ed edu gen go gob gouv gov govt ltd mil ne net nom or org plc sch".split()
)
ADDRESS = re.compile(r"[0-9.]+|\[.*\]")


def domain(url: str, kind: Domain = Domain.site) -> str:
    """The domain of a URL in lower case, "" where it names no server.

    A site is the name that somebody registered: the last two labels of the host, or three where a
    country (two letters) registers names below a second label such as co or com. It is a rule and
    not the Public Suffix List, so that the same table gives the same split in every year.

    >>> [domain("https://img1.Example.co.uk:443/a.jpg", kind) for kind in Domain]
    ['example.co.uk', 'img1.example.co.uk', 'uk']
    """
    name = host(url)
    if kind is Domain.host or ADDRESS.fullmatch(name):
        return name
    labels = name.split(".")
    if kind is Domain.top:
        return labels[-1]
    below = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in REGISTRIES
    return ".".join(labels[-3 if below else -2 :])


@lru_cache(1024)  # the URLs of a caption are read once for each reading
def host(url: str) -> str:
    """The server's name or address in lower case, without user, port and final dot.

    >>> host("http://user:secret@WWW.Example.com.:8080?a=/@b")
    'www.example.com'
    """
    place = url.partition("://")[2]
    for end in "/?#\\":
        place = place.partition(end)[0]
    place = place.rpartition("@")[2]
    name = place[: place.find("]") + 1] if place.startswith("[") else place.partition(":")[0]
    return name.lower().removesuffix(".")
