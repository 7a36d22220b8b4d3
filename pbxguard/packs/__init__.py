"""Where country packs are kept and how one is read: those that are shipped, or a folder of the site's own.

What is in them, and what must not be, is known to ``pbxguard.screening.pack``. The folder ``world`` is no pack: it
holds what several packs have in common (``shared`` in pack.toml).
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pbxguard.errors import BadConfig, BadPack, Unconfirmed
from pbxguard.screening.pack import Pack, SiteChoice, compile_pack, shared_files


@dataclass(frozen=True, slots=True)
class _Choice:
    accept_unverified: tuple[str, ...]
    shadow_rules: tuple[str, ...]
    shadow_lists: tuple[str, ...]
    rules_off: tuple[str, ...]


def load(name_or_path: str = "cn", choice: SiteChoice | None = None) -> Pack:
    """Read and compile a pack, once for each name, choice and process.

    Args:
        name_or_path: The id of a shipped pack (``cn``), or a folder with the same files (anything with a
            slash or a dot in it).
        choice: What the site chose ([screening] of its settings). None is for who reads a pack and screens no
            call with it: every row is accepted, in the mode that the pack gives it.

    Raises:
        BadPack: There is no such pack, a file of it is wrong, or a row refuses calls without a source and the
            site has not accepted that; the message names file, line and remedy.
        BadConfig: The site chose a rule or row that the pack does not have.
    """
    if choice is None:
        return _load(name_or_path, None)
    return _load(
        name_or_path,
        _Choice(choice.accept_unverified, choice.shadow_rules, choice.shadow_lists, choice.rules_off),
    )


def shipped() -> tuple[str, ...]:
    """The ids of the packs that come with pbxguard, sorted."""
    return tuple(sorted(entry.name for entry in files(__name__).iterdir() if (entry / "pack.toml").is_file()))


def table(name: str, file: str) -> list[dict[str, str]]:
    """The rows of a CSV file of a shipped pack, by column: ``vectors.csv``, ``callees.csv``."""
    return list(csv.DictReader(_text(files(__name__) / name / file).splitlines()))


@lru_cache(maxsize=16)
def _load(name_or_path: str, choice: _Choice | None) -> Pack:
    own_folder = any(mark in name_or_path for mark in "/.\\")
    folder: Traversable = Path(name_or_path) if own_folder else files(__name__) / name_or_path
    # The name may be empty or may not be one: only a folder with its main file is a pack.
    if not (name_or_path and folder.is_dir() and (folder / "pack.toml").is_file()):
        raise BadPack(
            f"no country pack {name_or_path!r} (pack.toml not found); shipped are {', '.join(shipped())}, "
            "or give a folder such as ./packs/cn"
        )
    try:
        return compile_pack(_texts(folder), choice)
    except Unconfirmed as error:
        raise Unconfirmed(f"country pack {name_or_path}: {error}", error.names) from error
    except BadPack as error:
        raise BadPack(f"country pack {name_or_path}: {error}") from error
    except BadConfig as error:
        raise BadConfig(f"{error} (country pack {name_or_path})") from error


def _texts(folder: Traversable) -> dict[str, str]:
    """The files of a pack by name, with those that it shares."""
    texts = {entry.name: _text(entry) for entry in folder.iterdir() if entry.name.endswith((".csv", ".toml"))}
    for name in shared_files(texts["pack.toml"]):
        if name in texts:
            raise BadPack(f"{name}: is in the pack, and shared in pack.toml names it too; keep one of the two")
        texts[name] = _text(files(__name__) / "world" / name)
    return texts


def _text(file: Traversable) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadPack(f"{file.name}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadPack(f"{file.name}: cannot be read ({error.strerror}); check its rights") from error
