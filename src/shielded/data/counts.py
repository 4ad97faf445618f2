# SPDX-License-Identifier: Apache-2.0
"""What is left after each filter, and what other choices would leave."""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

from shielded.data.domain import Domain
from shielded.data.soft_labels import Group, filters, top_share

GROUPED, SIZED, DOMAINS = "grouped", "4 to 128 images", "many domains"


@dataclass(frozen=True, slots=True)
class Settings:
    """What Appendix E leaves open: the share, what a domain is, the seed of the split."""

    share: Fraction = Fraction(1, 2)
    domain: Domain = Domain.site
    seed: int = 0


@dataclass(slots=True)
class Counts:
    """Captions and images after each step; and how concentrated the captions' domains are."""

    captions: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    shares: Counter[tuple[Domain, Fraction]] = field(default_factory=Counter)

    def add(self, step: str, images: int) -> None:
        """A caption with so many images is left after this step."""
        self.captions[step] += 1
        self.images[step] += images

    def passes(self, group: Group, settings: Settings) -> bool:
        """Whether a caption passes all filters after the size; count it after each it passes."""
        verdicts = {name: good(group) for name, good in filters(settings.share, settings.domain)}
        if all(verdict for name, verdict in verdicts.items() if name != DOMAINS):
            self.shares.update((kind, top_share(group, kind)) for kind in Domain)
        for name, verdict in verdicts.items():
            if not verdict:
                return False
            self.add(name, len(group.urls))
        return True

    def left_at(self, share: Fraction, kind: Domain) -> int:
        """How many captions would be left at the end, were this the share and the domain."""
        return sum(n for (one, top), n in self.shares.items() if one is kind and top < share)
