"""`pulseguard up` on the stand-in definitions: the real thing, from the command line on down."""

from __future__ import annotations

from functools import partial

from pulseguard_assets import cli
from pulseguard_assets.running.platform import Options

if __name__ == "__main__":
    cli.Options = partial(Options, definitions="stand_in_definitions")  # type: ignore[misc,assignment]
    cli.main()
