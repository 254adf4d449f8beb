"""The walk-through of docs/policies.md: its policy is taken from the page and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusion_edge.routing.rule import Rule
from diffusion_edge.routing.steps import by_floor, free

from .views import request, stage, symmetric, view

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_the_policy_of_the_page_works_as_the_page_says() -> None:
    """Premises: the phone takes 8 s, the hall 1 s."""
    whole, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    named: dict[str, Any] = {}
    exec(whole, named)
    assert line.split(":")[1].strip() == "Rule(nearest.choose),"
    rule = Rule(free(named["choose"], by_floor), frees_steps=True)
    assert rule.chooses_once
    seen = view(stage("phone", 0.4), stage("hall", 0.05))
    for deadline_s, plan in ((10.0, "phone:20"), (5.0, "hall:20")):
        asked = request(deadline_s=deadline_s)
        assert str(rule.choose(asked, seen, symmetric()).plan) == plan
