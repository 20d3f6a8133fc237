"""`pulseguard up` on other definitions: the real thing, from the command line on down.

The variable DEFINITIONS_OF_THIS_TEST names their module; the stand-in is the least there can be.
"""

from __future__ import annotations

import os
from functools import partial

from pulseguard_assets import cli
from pulseguard_assets.running.platform import Options

if __name__ == "__main__":
    module = os.environ.get("DEFINITIONS_OF_THIS_TEST", "stand_in_definitions")
    cli.Options = partial(Options, definitions=module)  # type: ignore[misc,assignment]
    cli.main()
