"""The errors. Every message names the field, what was expected and what was found."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from .images import Images


class DdpmError(Exception):
    """Base of every error that ddpm_rt raises on purpose."""


class PlanError(DdpmError):
    """A plan file is missing, malformed, damaged or of another version."""


class ShapeError(DdpmError, ValueError):
    """An array has the wrong shape, length or dtype."""


class OptionError(DdpmError, ValueError):
    """An option is unknown, out of range, or makes no sense with another."""


class DeviceError(DdpmError):
    """No such device, or a forked child used its parent's engine."""


class BackendError(DdpmError):
    """The library that runs the network is missing or failed, or a denoiser callable raised (see `__cause__`)."""


class NumericError(DdpmError):
    """An image is not finite. `.bad` lists the images by index; `.images` holds all of them, the good ones unharmed."""

    bad: tuple[int, ...] = ()
    images: Images | None = None


class CancelledError(DdpmError):
    """The request was cancelled: by a callback that returned False, or by `close()`."""


# ddpm_rt_status -> class; the extension raises through this.
BY_STATUS: dict[int, type[DdpmError]] = {
    1: PlanError,
    2: ShapeError,
    3: OptionError,
    4: DeviceError,
    5: BackendError,
    6: NumericError,
    7: CancelledError,
    8: DdpmError,
}
