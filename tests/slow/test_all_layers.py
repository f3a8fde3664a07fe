"""`--layer` on all blocks at once: the package's own pass, and each has a test that concerns it."""

from tests.lab import layers
from tests.project import test_layers
from tests.project.test_layers import run_pytest

written = test_layers.written  # a fixture


def test_all_blocks_replaced_by_the_package_s_own_pass_the_tests_that_concern_them(written):
    """All at once, without what is slow here."""
    slow = "live float32 dtype0 parameter_counts sides_at code_point max_padded activation relative_key"
    once = " and ".join(f"not {word}" for word in slow.split())
    status, output = run_pytest("--layer", written / "solved.py", "tests", "-k", once, "-vv")
    assert status == 0, output
    passed = [line.split(" ")[0] for line in output.splitlines() if " PASSED" in line]
    untested = [b for b in layers.BLOCKS if not any(layers.concerns(b, name) for name in passed)]
    assert untested == []
