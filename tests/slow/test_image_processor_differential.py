"""Thousands of pictures × options against the live reference (under a minute)."""

import pytest

pytest.importorskip("transformers", reason="the live reference needs transformers")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.pictures import OPTIONS, check_agrees, packages, pictures


@settings(max_examples=3000, deadline=None)
@given(pictures(), packages(), OPTIONS, st.booleans())
def test_any_picture_with_any_options_gives_the_reference_s_pixels(pixels, package, options, per_call):
    check_agrees(pixels, package, options, per_call)
