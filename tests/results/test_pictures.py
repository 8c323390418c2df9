from __future__ import annotations

from itertools import combinations

from nni_cssnas.results.pictures import front_picture


def test_names_of_a_front_do_not_overlap() -> None:
    members = [
        (f"front-{7 - i}", cost * 1e6, score)
        for i, (cost, score) in enumerate(
            [(2.55, 0.73), (2.74, 0.806), (2.742, 0.812), (2.78, 0.813), (2.81, 0.8131), (3.07, 0.834), (3.2, 0.86)]
        )
    ]
    figure = front_picture(members, "params", [*(member[1:] for member in members), (3.4e6, 0.6)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[:2] == ["front-7", "front-1"]  # the ends in any case
    assert 3 <= len(written) < 7


def test_a_front_of_one_has_its_name_once() -> None:
    figure = front_picture([("front-1", 2e6, 0.5)], "params", [])
    assert [text.get_text() for text in figure.axes[0].texts] == ["front-1"]
