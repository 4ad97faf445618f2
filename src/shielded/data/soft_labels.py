# SPDX-License-Identifier: Apache-2.0
"""Which captions of CC12M become soft labels: the filters of Appendix E, in its order.

A soft label is a caption with several images. Captions are filtered, images never: what is left of
a caption is its whole distribution of images, near-duplicates included.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from shielded.data.domain import Domain, domain

LEAST, MOST = 4, 128  # images of a caption
MACHINE_MADE = (
    "Display larger image",
    "This image may contain",
    "This is the product title",
    "Image result for",
)
PERSON = "<PERSON>"  # what CC12M writes for the name of a person


@dataclass(frozen=True, slots=True)
class Group:
    """A caption and the URLs of all its images, in the order of the table."""

    caption: str
    urls: tuple[str, ...]


def right_size(images: int) -> bool:
    """Whether a caption with so many images has at least four and at most 128."""
    return LEAST <= images <= MOST


def top_share(group: Group, kind: Domain = Domain.site) -> Fraction:
    """The share of the images that are on the most frequent domain, exactly."""
    counts = Counter(domain(url, kind) for url in group.urls)
    return Fraction(max(counts.values()), len(group.urls))


def many_domains(group: Group, share: Fraction, kind: Domain = Domain.site) -> bool:
    """Whether no domain holds `share` of the images or more: else it may be a photo album."""
    return top_share(group, kind) < share


def made_by_people(group: Group) -> bool:
    """Whether the caption has none of the four phrases of captions that programs write."""
    return not any(phrase in group.caption for phrase in MACHINE_MADE)


def no_person(group: Group) -> bool:
    """Whether the caption names nobody: CC12M puts <PERSON> in the place of names."""
    return PERSON not in group.caption


Filter = tuple[str, Callable[[Group], bool]]


def filters(share: Fraction, kind: Domain) -> tuple[Filter, ...]:
    """The filters after the size in the order of Appendix E, each with its name in the summary."""
    return (
        ("many domains", lambda group: many_domains(group, share, kind)),
        ("made by people", made_by_people),
        ("no person", no_person),
    )
