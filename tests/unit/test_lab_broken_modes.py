"""Ways to break a defender: one that there is not, or that breaks nothing any more, is told."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.lab import broken
from bench.lab.errors import LabError


def test_a_mode_that_is_none_is_told() -> None:
    """With those that there are."""
    with pytest.raises(LabError, match="'nope'; there are put-heartbeat, no-fencing, ack-early"):
        broken.argv("nope")
    assert broken.main(["nope", "run"]) == LabError.exit_code
    assert broken.main(["ack-early"]) == LabError.exit_code


def test_a_product_that_has_changed_is_told() -> None:
    """A name that is gone and a parameter that is gone raise, and nothing is replaced."""
    product = ModuleType("product")
    vars(product)["renew"] = original = lambda claim: claim
    with pytest.raises(LabError, match="product has no take any more"):
        broken.replace(product, "take", lambda _: None)
    with pytest.raises(LabError, match=r"product.renew takes no revision any more"):
        broken.replace(product, "renew", lambda _: None, "claim", "revision")
    assert vars(product)["renew"] is original
    broken.replace(product, "renew", lambda before: before, "claim")
