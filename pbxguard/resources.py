"""Where the files are that are shipped beside the code: in a checkout at the top, in a wheel inside the package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def _folder(name: str, in_checkout: str) -> Path:
    shipped = _PACKAGE / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / in_checkout


DIALPLANS = _folder("dialplans", "dialplans")
SCENARIOS = _folder("scenarios", "tests/scenarios")
