"""Finding device files: the catalogue that is installed with the package, and files of one's own.

A device of the catalogue is ``catalog/NAME.toml``; the constants its architecture shares are in
``catalog/architectures/ARCHITECTURE.toml``. Adding a file adds a device: no code lists them.
"""

from __future__ import annotations

import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ..errors import InputError, unknown_name
from .spec import Architecture, Device, parse_device

ARCHITECTURES = "architectures"
LARGEST = 1 << 20
"""Bytes; a larger file is no device file."""


def device_files() -> dict[str, Traversable]:
    """The catalogue: device name → file, sorted by name."""
    return _toml_files(resources.files(__package__) / "catalog")


def device_names() -> list[str]:
    """The names :func:`load_device` knows, sorted."""
    return list(device_files())


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """A device of the catalogue by name, or any device file by path.

    A text that ends in ``.toml`` or contains a path separator is a path. The architecture a file
    names is looked up in ``architectures/`` beside the file, then in the catalogue; a host beside the
    file as ``NAME.toml``, then in the catalogue. A device of arrays may be asked for in another size:
    ``bitmod@area=3mm2,bandwidth=64GB/s`` (area of its arrays, of its DRAM the bandwidth; see :mod:`.iso`).

    Raises InputError, one line, for an unknown name (with near names), a file that cannot be read,
    and a file that :func:`.spec.parse_device` refuses.
    """
    text = os.fspath(name_or_path)
    name, _, changes = text.rpartition("@")
    if name and "=" in changes and not isinstance(name_or_path, os.PathLike):
        from .iso import resized  # the arrays' cycle models, which few devices need

        return resized(_load(name, hosted=True), changes)
    return _load(name_or_path, hosted=True)


def _load(name_or_path: str | os.PathLike[str], *, hosted: bool) -> Device:
    data, file, own = read_device(name_or_path)

    def host(name: str) -> Device:
        if not hosted:
            raise InputError(f"{name}: a host has no host of its own")
        beside = own.parent / f"{name}.toml" if own is not None else None
        return _load(beside if beside is not None and beside.is_file() else name, hosted=False)

    return parse_device(data, file, lambda name: find_architecture(name, own), host)


def read_device(name_or_path: str | os.PathLike[str]) -> tuple[bytes, str, Path | None]:
    """Bytes of the device file that :func:`load_device` would load, its name in messages, and the folder of its
    own architectures (none in the catalogue). Raises InputError, one line, where there is no such file."""
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, os.PathLike) or text.endswith(".toml") or "/" in text or os.sep in text:
        return _read(Path(text), text), text, Path(text).parent / ARCHITECTURES
    files = device_files()
    if text not in files:
        raise unknown_name("device", text[:80], files, "or give the path of a device file (.toml)")
    return _read(files[text], _shown(text)), _shown(text), None


def _shown(name: str) -> str:
    return f"hw/catalog/{name}.toml"


def find_architecture(name: str, own: Path | None = None) -> Architecture:
    """The architecture file ``name``, from the folder ``own`` if it is there, else from the catalogue."""
    shared = _toml_files(resources.files(__package__) / "catalog" / ARCHITECTURES)
    mine = _toml_files(own) if own is not None and own.is_dir() else {}
    if name in mine:
        file = f"{own}/{name}.toml"
        return file, _read(mine[name], file)
    if name not in shared:
        raise unknown_name("architecture", name[:80], {*shared, *mine})
    file = _shown(f"{ARCHITECTURES}/{name}")
    return file, _read(shared[name], file)


def _toml_files(folder: Traversable) -> dict[str, Traversable]:
    found = {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}
    return dict(sorted(found.items()))


def _read(file: Traversable, shown: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}; accepted: a device file (TOML)") from None
    except ValueError:
        raise InputError(f"{shown!r}: not a path; accepted: the path of a device file (TOML)") from None
    if len(data) > LARGEST:
        raise InputError(f"{shown}: larger than 1 MiB; accepted: a device file (TOML)")
    return data
