"""What the tests of `running/` share: short-lived children of one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pulseguard_assets.running.supervisor import ChildSpec

MakeSpec = Callable[..., ChildSpec]


@pytest.fixture
def child(tmp_path: Path) -> MakeSpec:
    """`child("print(1)", name=..., **other fields)`: a child that runs this Python."""

    def make(code: str, *, name: str = "child", **fields: object) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=(sys.executable, "-I", "-S", "-c", code),
            environment={"PATH": os.environ["PATH"]},
            directory=tmp_path,
            **fields,  # type: ignore[arg-type]
        )

    return make
