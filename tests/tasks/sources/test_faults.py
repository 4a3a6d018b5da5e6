from __future__ import annotations

from tasks.sources.faults import FAULTS


def test_only_what_a_later_moment_may_mend_is_read_again() -> None:
    again = {name for name, fault in FAULTS.items() if fault.transient}
    assert again == {"missing-image", "read-error", "plugin-error"}
