"""Where a network runs."""

from contrastive_core.errors import InputError


def pick_device(name: str = "auto") -> str:
    """The torch device an option names.

    Args:
        name: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        InputError: No such device here.

    Example:
        >>> pick_device("cpu")
        'cpu'
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            "unknown device", where="--device", why=f"got {name}", remedy="use auto, cpu or cuda"
        ) from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in count:
        raise InputError("unknown device", where="--device", why=f"got {name}", remedy="use auto, cpu or cuda")
    if (device.index or 0) >= count[device.type]:
        raise InputError(
            "the device is not there",
            where="--device",
            why=f"{name}; this machine has {count[device.type]} of its kind",
            remedy="use auto, or cpu",
        )
    return name
