"""Strip every download address from uv.lock, keeping versions and hashes.

uv writes the address of the index it was run with into each entry of the lock. Sites install behind mirrors of their
own, so the committed lock names none: the default index becomes the word ``locked`` and each file its bare name. The
default index is whichever registry address the lock itself uses; no address is spelled here.

Usage: python scripts/neutral_lock.py uv.lock
"""

import re
import sys
from pathlib import Path

_ADDRESS = r"[a-z][a-z0-9+.-]*://[^\"]*"


def neutralise(text: str) -> str:
    """Return the lock's text without any address.

    Args:
        text: Content of a ``uv.lock``, freshly written or already neutral (the function is idempotent).
    """
    text = re.sub(rf'source = {{ registry = "{_ADDRESS}" }}', 'source = { registry = "locked" }', text)
    text = re.sub(r'url = "[a-z][a-z0-9+.-]*://[^"]*/([^"/#?]+)(?:[#?][^"]*)?"', r'path = "\1"', text)
    return re.sub(r', upload-time = "[^"]*"', "", text)


def main() -> None:
    """Rewrite the named lock in place, or fail without touching it if an address would remain."""
    path = Path(sys.argv[1])
    text = neutralise(path.read_text())
    if left := re.findall(r"https?://\S+", text):
        sys.exit(f"{path}: {len(left)} address(es) remain after rewriting; nothing was written")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    main()
