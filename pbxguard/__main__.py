"""``python -m pbxguard`` is the ``pbxguard`` command."""

from pbxguard.cli import main

if __name__ == "__main__":
    main()
