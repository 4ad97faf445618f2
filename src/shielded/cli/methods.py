# SPDX-License-Identifier: Apache-2.0
"""The table of methods that `shielded generate` knows: SPELL and its siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shielded.cli.method import SHIELDS, SPACE, Build, Kind, given
from shielded.errors import BadInput
from shielded.report.page import SPELL

if TYPE_CHECKING:
    from shielded.cli.settings import Settings

SHARE = 0.5  # of the guidance weight, where --share is not given


def spell(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """The method of the paper."""
    from shielded import Spell

    more = given(settings, "window")
    return Spell(
        shields,
        radius=radius,
        overcompensation=settings.overcompensation,
        overlap=settings.overlap,
        space=space,
        every=settings.every,
        **more,
    )


def kernel(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Repulsion in any space."""
    from shielded.methods import KernelRepulsion

    return KernelRepulsion(space, **given(settings, "strength", "variant", "attract", "window"))


def particle(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Repulsion of noisy images."""
    from shielded.methods import ParticleGuidance

    return ParticleGuidance(**given(settings, "strength", "window"))


def soft(name: str) -> Build:
    """How a method of that name is built which pushes away from references, softly."""

    def build(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
        from shielded import methods

        more = given(settings, "strength", "window")
        return getattr(methods, name)(shields, radius=radius, **more)

    return build


def cads(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Noise on the condition."""
    from shielded.methods import CADS

    return CADS()


def interval(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Guidance for a while."""
    from shielded.methods import IntervalGuidance

    return IntervalGuidance()


def lower(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Less guidance."""
    from shielded.methods import LowerGuidance

    return LowerGuidance(SHARE if settings.share is None else settings.share)


def discard(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Draw again."""
    from shielded.methods import GenerateAndDiscard

    return GenerateAndDiscard(shields, radius=radius)


def nudging(settings: Settings, shields: Any, radius: float | None, space: Any) -> Any:
    """Generate, look, nudge, generate again."""
    from shielded.methods import EmbeddingNudging
    from shielded.methods.filters import NearProtected
    from shielded.shields import Shields

    if settings.protect is None:
        raise BadInput("--method nudging needs --protect: what are images to keep away from?")
    given_images = tuple(s for s in shields.sources if s.name not in ("batch", "history"))
    near = NearProtected(Shields(given_images), radius, space)
    return EmbeddingNudging(space=space, filters=[near], **given(settings, "window"))


METHODS = {
    "spell": Kind(
        "SPELL",
        "SPELL",
        spell,
        frozenset(SHIELDS | SPACE | {"overcompensation", "overlap", "every", "window"}),
        "looks ahead while the image is made",
        SPELL["source"],
        certifies=True,
    ),
    "kernel": Kind(
        "kernel repulsion",
        "kernel",
        kernel,
        frozenset(SPACE | {"strength", "variant", "attract", "window"}),
        "pushes the images of a prompt apart at every step, however far they are",
        "the thesis \u201cRepulsion in Stable Diffusion 2\u201d",
    ),
    "particle": Kind(
        "particle guidance",
        "particle",
        particle,
        frozenset({"strength", "window"}),
        "pushes the noisy images of a prompt apart, early on",
        "Corso et al. 2023 (arXiv 2310.13102)",
    ),
    "posterior": Kind(
        "the posterior shield",
        "posterior",
        soft("PosteriorShield"),
        frozenset(SHIELDS | {"strength", "window"}),
        "makes it less likely at every step that the image ends inside a shield, but moves no "
        "finished image",
        "Appendix A of SPELL (arXiv 2410.06025)",
        certifies=True,
    ),
    "safe-denoiser": Kind(
        "Safe Denoiser",
        "safe",
        soft("SafeDenoiser"),
        frozenset(SHIELDS | {"strength", "window"}),
        "subtracts a mean of the images to keep away from, early on",
        "Kim et al. 2025 (arXiv 2502.08011)",
    ),
    "sgf": Kind(
        "safety-guided flow",
        "SGF",
        soft("SGF"),
        frozenset(SHIELDS | {"strength", "window"}),
        "pushes away from the images to keep away from, early on, the more the nearer they are",
        "Kim, Kim and Park 2026 (arXiv 2603.13300)",
    ),
    "cads": Kind(
        "CADS",
        "CADS",
        cads,
        frozenset(),
        "puts noise on the prompt, much of it early and none late",
        "Sadat et al. 2023 (arXiv 2310.17347)",
        verb="changed",
        moves=False,
    ),
    "interval": Kind(
        "interval guidance",
        "interval",
        interval,
        frozenset(),
        "guides by the prompt at medium noise levels alone",
        "Kynk\u00e4\u00e4nniemi et al. 2024 (arXiv 2404.07724)",
        verb="changed",
        moves=False,
    ),
    "lower": Kind(
        "a lower guidance weight",
        "lower",
        lower,
        frozenset({"share"}),
        "follows the prompt less closely",
        "Ho and Salimans 2022 (arXiv 2207.12598)",
        verb="changed",
        moves=False,
    ),
    "discard": Kind(
        "generate and discard",
        "discard",
        discard,
        frozenset(SHIELDS),
        "throws images away that come inside a shield, and draws others in their place",
        "rejection sampling",
        verb="drawn again",
        certifies=True,
        moves=False,
    ),
    "nudging": Kind(
        "embedding nudging",
        "nudging",
        nudging,
        frozenset({"radius", "protect", "protect_radius", "window"} | SPACE),
        "makes images again that come too close to a protected one, and nudges them away from it; "
        "what stays too close is withheld, as a grey picture",
        "Zand and Nasr 2024 (arXiv 2408.15450)",
        verb="nudged",
        moves=False,
    ),
}
