"""The curve of a stage: what is kept of it for a card."""

from __future__ import annotations

import pytest

from recbole_llamarec.tuning.curve import TrainingCurve


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (24, {4: 2.5, 8: 6.5, 12: 10.5, 16: 14.5, 20: 18.5, 24: 22.5}),
        (8, {2: 1.5, 4: 3.5, 5: 5.0, 6: 6.0, 7: 7.0, 8: 8.0}),  # as equal as can be
        (2, {1: 1.0, 2: 2.0}),
        (0, {}),
    ],
)
def test_mean_losses_of_consecutive_parts_by_their_last_step(steps, expected):
    losses = {step: float(step) for step in reversed(range(1, steps + 1))}
    assert TrainingCurve(losses=losses).mean_losses(parts=6) == expected
