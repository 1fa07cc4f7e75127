from __future__ import annotations

import pytest

from raycluster.serve.engines.inside.key import NOBODY, asked_by


@pytest.mark.parametrize("owner", ["", "a b", "-a", "a" * 65, "\u00e4", 'a"'])
def test_an_owner_that_is_none_is_nobody(owner: str) -> None:
    assert asked_by([(b"x-raycluster-owner", owner.encode())]) == (NOBODY, None)
