# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, each with one sentence that names the remedy."""


class ShieldedError(Exception):
    """Base of every error that this library raises on purpose."""


class BadInput(ShieldedError, ValueError):
    """An argument that cannot be used: a negative radius, an empty prompt, an unreadable image."""


class ShapeMismatch(BadInput):
    """Latents, references or groups whose shapes do not belong together."""


class NonFinite(ShieldedError, ArithmeticError):
    """NaN or infinity where a distance has to be measured."""


class Damaged(ShieldedError, RuntimeError):
    """Stored files that are not as they were written."""


class Busy(ShieldedError, TimeoutError):
    """A protected set that another process is changing."""


class NotStored(ShieldedError, OSError):
    """A change that could not be written: a full disk, a folder without permission."""


class Lost(ShieldedError, RuntimeError):
    """Work on other processes or machines that did not come back."""


class UnsupportedScheduler(ShieldedError, TypeError):
    """A scheduler, or a way of calling one, whose expected output x0 is not known."""


class NotShielded(ShieldedError, RuntimeError):
    """A generation ran past the shields, so its images would be unprotected."""


class NotClear(ShieldedError, RuntimeError):
    """An image that is still inside a shield after every attempt."""


class UnknownModel(BadInput):
    """A model name that is neither bundled, nor a folder, nor found on the hub."""


class ShieldedWarning(UserWarning):
    """Images that were made, but not as one would expect: unchecked, or hardly themselves."""


class MissingExtra(ShieldedError, ImportError):
    """An optional dependency that is not installed."""


class NotApplicable(ShieldedError, TypeError):
    """A method that has nothing to act on in a pipeline, or in the way it is called."""
