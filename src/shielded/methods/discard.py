# SPDX-License-Identifier: Apache-2.0
"""Generate and discard: draw until enough images lie outside all shields, or keep the best."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from shielded.errors import BadInput, NotApplicable, ShieldedWarning
from shielded.guidance import Run, Shift, Step, expand
from shielded.landing import Landing, land
from shielded.methods.draws import Draws, assemble
from shielded.methods.method import CallRun, MethodRun, PipelineMethod
from shielded.samplers.call import called
from shielded.shields import Shields
from shielded.shields.batch import Batch
from shielded.shields.shields import check_radius
from shielded.spaces.space import Space

__all__ = ["GenerateAndDiscard"]

KEEP = ("first", "best")
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")


class GenerateAndDiscard(PipelineMethod):
    """Images made as they come; those inside a shield are thrown away and drawn again.

    A call of the pipeline for K images draws K, keeps those that lie outside all shields (and,
    with batch shields, away from those kept before them), and calls again, with the same
    generators, which are further on by then, for as many as are missing, until K are kept. Nothing
    inside the sampler is touched: what is returned are plain images.

    Args:
        shields, radius: as for `Spell`.
        most: how many times K images are drawn at most.
        keep: "first" keeps images as they come and stops as soon as it has K; what is still
            missing after `most` draws is filled with those furthest outside, and a warning. "best"
            always draws most x K images and keeps, one after the other, the one furthest from all
            shields and from those kept.

    Raises:
        BadInput: for values that cannot be used.
        NotApplicable: by `on` and in the block, where a call cannot be made again.

    Example:
        >>> GenerateAndDiscard(Shields.batch(), radius=20.0, most=4)
        GenerateAndDiscard(Shields.batch(), radius=20.0, most=4, keep='first')
    """

    needs = "needs whole images"

    def __init__(
        self,
        shields: Shields | None = None,
        radius: float | None = None,
        most: int = 8,
        keep: str = "first",
        space: Space | None = None,
    ):
        self.shields = Shields.batch() + Shields.history() if shields is None else shields
        self.radius = check_radius(radius)
        self.shields.need(radius)
        if most < 1:
            raise BadInput(f"most is {most}: it must be 1 or more.")
        if keep not in KEEP:
            raise BadInput(f"keep is {keep!r}: it must be one of {', '.join(KEEP)}.")
        self.most, self.keep, self.space = int(most), keep, space

    @property
    def static(self) -> Shields:
        """All shields but those of the batch itself."""
        return Shields(tuple(s for s in self.shields.sources if not isinstance(s, Batch)))

    @property
    def apart(self) -> float:
        """How far the images of a batch have to be from each other; 0 without batch shields."""
        radii = [s.radius for s in self.shields.sources if isinstance(s, Batch)]
        return max((self.radius or 0.0 if r is None else r for r in radii), default=0.0)

    def prepare(self, pipe: Any) -> None:
        """Refuse shields that were made for another model, or in another space."""
        self.shields.check(pipe, self.space)

    def begin(self) -> None:
        """Take up what protected sets have become meanwhile."""
        self.shields.refresh()

    def start(self, pipe: Any, groups: Sequence[Hashable] | None) -> _DiscardRun:
        """The run of a block."""
        return _DiscardRun(self, pipe, groups)

    @contextmanager
    def on(self, pipe: Any, groups: Sequence[Hashable] | None = None) -> Iterator[MethodRun]:
        """Answer every call of the pipeline in the block with images outside all shields.

        The run counts `evaluations` and `drawn` images of all draws; certificates are those of
        the images that were kept.
        """
        with super().on(pipe, groups) as run, called(pipe, run.call):  # type: ignore[attr-defined]
            yield run

    def shift(self, step: Step) -> Shift | None:
        """Nothing: the images are plain ones."""
        return None

    def measure(self, sample: Tensor, groups: Sequence[Hashable], space: Space) -> Landing:
        """The images (B, ...) and the nearest reference of each, those of the batch left out."""
        return land(sample, self.static, groups, self.radius, space, _never, move=False)

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing:
        """Certify the images that were kept, and remember them."""
        landing = land(sample, self.shields, step.groups, self.radius, space, _never, move=False)
        for history in self.shields.histories:
            history.remember(landing.measured, step.groups)
        return landing

    def __repr__(self) -> str:
        return (
            f"GenerateAndDiscard({self.shields!r}, radius={self.radius}, most={self.most}, "
            f"keep={self.keep!r})"
        )


class _DiscardRun(CallRun):
    """A run that calls the pipeline as often as it takes."""

    guidance: GenerateAndDiscard
    chooses = "GenerateAndDiscard"

    def __init__(self, method: GenerateAndDiscard, pipe: Any, groups: Sequence[Hashable] | None):
        super().__init__(method, pipe, groups)
        self.drawn = 0  # images, in all calls of the block

    def call(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """One call of the pipeline: draw, choose, draw again, put the answer together."""
        if arguments.get("latents") is not None:
            raise NotApplicable(
                "latents= starts every draw from the same noise: pass a generator instead."
            )
        given = self.groups
        try:
            draws, results = self._draws(plain, arguments)
        finally:
            self.groups = given
        picks = draws.picks
        latents, groups = draws.samples(picks), tuple(draws.groups[c] for c in picks)
        self._last = Step(latents, latents, 1.0, 0.0, groups)
        self.generation += 1  # what is kept counts as one of its own, without sampling calls
        Run.finish(self, latents)
        if picks == list(range(draws.sizes[0])):
            return results[0]
        return assemble(results, draws.sizes, [draws.places[c] for c in picks])

    def _draws(
        self, plain: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Draws, list[Any]]:
        method = self.guidance
        result, sample = self._draw(plain, arguments)
        groups, results = expand(self.groups, len(sample)), [result]
        name, each = _each(arguments, len(sample))
        draws = Draws(len(sample) // each, each, method.apart)
        draws.add(method.measure(sample, groups, self.space), groups)
        most = method.most * len(sample)
        while draws.count < most and (draws.missing or method.keep == "best"):
            fewer = each if method.keep == "best" or name is None else max(draws.lacking)
            places = [p * each + n for p in range(draws.prompts) for n in range(fewer)]
            self.groups = owners = tuple(groups[place] for place in places)
            result, part = self._draw(plain, _less(arguments, name, each, fewer))
            results.append(result)
            draws.add(method.measure(part, owners, self.space), owners)
        if method.keep == "best":
            draws.kept.clear()
        elif draws.missing:
            warnings.warn(
                f"{draws.missing} of {len(sample)} images are only those that come nearest to "
                f"being outside all shields, after {draws.count} were drawn: use a smaller radius "
                "or a larger most.",
                ShieldedWarning,
                stacklevel=5,
            )
        draws.fill()
        return draws, results

    def _draw(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, Tensor]:
        result, sample = self.once(plain, arguments)
        self.drawn += len(sample)
        return result, sample


def _never() -> Tensor:
    raise AssertionError("nothing is moved")


def _each(arguments: dict[str, Any], count: int) -> tuple[str | None, int]:
    """The argument that says how many images of each prompt there are, and that number.

    None and 1 where something else is given image by image: then none can stand in for another.
    """
    own = (v for name, v in arguments.items() if name != "generator" and hasattr(v, "__len__"))
    if not any(not isinstance(v, str | dict) and len(v) == count for v in own):
        for name in COUNTS:
            each = arguments.get(name)
            if isinstance(each, int) and each > 0 and count % each == 0:
                return name, each
    return None, 1


def _less(arguments: dict[str, Any], name: str | None, each: int, fewer: int) -> dict[str, Any]:
    """The same call for fewer images of each prompt, with the first generators of each."""
    if name is None or fewer == each:
        return arguments
    generators = arguments.get("generator")
    less = arguments | {name: fewer}
    if isinstance(generators, list):
        less["generator"] = [g for n, g in enumerate(generators) if n % each < fewer]
    return less
