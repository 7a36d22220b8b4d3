"""Where country packs are kept and how one is read: those that are shipped, or a folder of the site's own.

What is in them, and what must not be, is known to ``pbxguard.screening.pack``.
"""

from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pbxguard.errors import BadPack
from pbxguard.screening.pack import Pack, compile_pack


@lru_cache(maxsize=8)
def load(name_or_path: str = "cn") -> Pack:
    """Read and compile a pack, once for each name and process.

    Args:
        name_or_path: The id of a shipped pack (``cn``), or a folder with the same files (anything with a
            slash or a dot in it).

    Raises:
        BadPack: There is no such pack, or a file of it is wrong; the message names the remedy.
    """
    own_folder = any(mark in name_or_path for mark in "/.\\")
    folder: Traversable = Path(name_or_path) if own_folder else files(__name__) / name_or_path
    # The name may be empty or may not be one: only a folder with its main file is a pack.
    if not (name_or_path and folder.is_dir() and (folder / "pack.toml").is_file()):
        shipped = sorted(entry.name for entry in files(__name__).iterdir() if (entry / "pack.toml").is_file())
        raise BadPack(
            f"no country pack {name_or_path!r} (pack.toml not found); shipped are {', '.join(shipped)}, "
            "or give a folder such as ./packs/cn"
        )
    texts = {}
    for entry in folder.iterdir():
        if entry.name.endswith((".csv", ".toml")):
            try:
                texts[entry.name] = entry.read_bytes().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise BadPack(f"{entry.name}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
            except OSError as error:
                raise BadPack(f"{entry.name}: cannot be read ({error.strerror}); check its rights") from error
    try:
        return compile_pack(texts)
    except BadPack as error:
        raise BadPack(f"country pack {name_or_path}: {error}") from error
