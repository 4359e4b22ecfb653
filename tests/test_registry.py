"""Registries: names, knobs, building, and plug-ins that do not load."""

from __future__ import annotations

import functools
from fractions import Fraction
from importlib.metadata import EntryPoint

import pytest

from adaptok import registry
from adaptok.registry import Registry, close_matches, split_part


@pytest.fixture
def sweets() -> Registry:
    """Two factories: one with knobs, one without a docstring or knobs."""
    sweets = Registry("sweet")

    @sweets.register("caramel")
    def caramel(*, dim: int, salt: float = 0.5, soft: bool = True):
        """Sugar, browned.

        A second paragraph.

        Args:
            dim: wired.
            salt: grams, and more
                if it is needed.

        Raises:
            ValueError: burnt.
        """
        return ("caramel", dim, salt, soft)

    @sweets.register("candy")
    class Candy:
        def __init__(self, dim: int, in_channels: int):
            self.made_of = (dim, in_channels)

    return sweets


def test_names_are_sorted_and_match_patterns(sweets):
    assert sweets.names() == ["candy", "caramel"]
    assert sweets.names("*mel") == ["caramel"]
    assert sweets.names("z*") == []


def test_a_duplicate_raises_and_keeps_the_first(sweets):
    first = sweets.get("caramel")
    with pytest.raises(ValueError, match="sweet 'caramel' is already registered"):
        sweets.register("caramel")(lambda: None)
    assert sweets.get("caramel") is first


def defined(flavour):
    class Fudge:
        taste = flavour

    return Fudge


def test_what_is_defined_again_replaces_itself(sweets):
    sweets.register("fudge")(defined("plain"))
    again = sweets.register("fudge")(defined("rum"))
    assert sweets.get("fudge") is again
    with pytest.raises(ValueError, match=r"by .*Fudge; choose another name, or give the class"):
        sweets.register("fudge")(functools.partial(again))
    sweets.register("toffee")(lambda: None)
    with pytest.raises(ValueError, match="sweet 'toffee' is already registered"):
        sweets.register("toffee")(lambda: None)


def test_an_unknown_name_lists_close_matches_and_all_names(sweets):
    with pytest.raises(ValueError, match="unknown sweet 'caramell'") as error:
        sweets.get("caramell")
    assert "did you mean 'caramel'" in str(error.value)
    assert "registered: candy, caramel" in str(error.value)


def test_no_suggestion_where_nothing_is_close(sweets):
    with pytest.raises(ValueError, match="unknown sweet 'xyz'; registered"):
        sweets.get("xyz")
    assert close_matches("xyz", ["candy"]) == ""


def test_case_keeps_no_name_from_being_close():
    assert close_matches("CANDY", ["candy"]) == " (did you mean 'candy'?)"
    assert close_matches("candi", ["Candy"]) == " (did you mean 'Candy'?)"


def test_a_former_name_of_a_knob_gives_the_new_one():
    for name in ("vit", "spacetime", "axial"):
        with pytest.raises(ValueError, match=f"{name}.*'recipe'.*'norm_placement'"):
            registry.PROCESSORS.create(name, recipe="matey")


def test_options_that_a_constructor_passes_on_are_those_of_its_base(sweets):
    class Base:
        def __init__(self, dim: int, *, salt: float = 0.5, soft: bool = True):
            self.salt = salt

    @sweets.register("toffee")
    class Toffee(Base):
        def __init__(self, dim: int, *, soft: bool = False, crisp: int = 1, **options):
            super().__init__(dim, soft=soft, **options)

    assert sweets.wired("toffee") == ["dim"]
    assert sweets.knobs("toffee") == {"salt": 0.5, "soft": False, "crisp": 1}
    assert sweets.create("toffee", 4, salt=0.25).salt == 0.25


def test_knobs_have_defaults_and_wired_parameters_have_none(sweets):
    assert sweets.knobs("caramel") == {"salt": 0.5, "soft": True}
    assert sweets.wired("caramel") == ["dim"]
    assert sweets.knobs("candy") == {}
    assert sweets.wired("candy") == ["dim", "in_channels"]


def test_describe_gives_the_first_line_and_the_knobs_with_their_meanings(sweets):
    assert sweets.describe("caramel").splitlines() == [
        "caramel: Sugar, browned.",
        "  salt=0.5: grams, and more if it is needed.",
        "  soft=True",
    ]
    assert sweets.describe("candy").startswith("candy:")


def test_meanings_come_from_the_docstring_of_the_class_and_of_its_bases(sweets):
    class Sweet:
        """Sweet.

        Args:
            width: in millimetres.
            taste: hidden by the subclass.
        """

    @sweets.register("square")
    class Square(Sweet):
        """Square.

        Args:
            taste: "sour" or "bitter".
        """

        def __init__(self, *, taste="sour", width=1, color=None):
            pass

    assert sweets.meanings("square") == {
        "taste": '"sour" or "bitter".',
        "width": "in millimetres.",
        "color": "",
    }


def test_create_passes_what_it_is_given(sweets):
    assert sweets.create("caramel", dim=8, salt=1.0) == ("caramel", 8, 1.0, True)


def test_create_refuses_an_unknown_knob_and_lists_the_valid_ones(sweets):
    with pytest.raises(ValueError, match="sweet 'caramel' has no knob 'slat'") as error:
        sweets.create("caramel", dim=8, slat=1.0)
    assert "did you mean 'salt'" in str(error.value)
    assert "its knobs: salt, soft" in str(error.value)
    with pytest.raises(ValueError, match="its knobs: none"):
        sweets.create("candy", dim=8, in_channels=1, sugar=3)


def test_build_wires_only_what_the_signature_names(sweets):
    assert sweets.build("caramel", dim=8, in_channels=3) == ("caramel", 8, 0.5, True)
    assert sweets.build({"name": "caramel", "soft": False}, dim=8)[3] is False
    assert sweets.build("candy", dim=8, in_channels=3).made_of == (8, 3)


@pytest.mark.parametrize("part", [3, None, {"salt": 1.0}, {"name": 7}, ["caramel"]])
def test_a_part_is_a_name_or_a_mapping_with_a_name(part):
    with pytest.raises(ValueError, match="a sweet is a name or a mapping with 'name'"):
        split_part(part, "sweet")


def test_split_part_leaves_its_argument_alone():
    part = {"name": "caramel", "salt": 1.0}
    assert split_part(part, "sweet") == ("caramel", {"salt": 1.0})
    assert part == {"name": "caramel", "salt": 1.0}


def entry_point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="adaptok.sweets")


MUTE = """
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

raise Mute
"""


def test_plugins_are_loaded_once_and_a_broken_one_is_left_out(sweets, monkeypatch, tmp_path):
    """Whatever else runs code of others at import: only `Registry._load_plugins` (searched for
    entry_points, import_module and __import__)."""
    asked = []
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    (tmp_path / "leaving_not.py").write_text("thing = None")
    (tmp_path / "mute.py").write_text(MUTE)
    monkeypatch.syspath_prepend(tmp_path)

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [
            entry_point("gone", "no_such_package:thing"),
            entry_point("candy", "fractions:Fraction"),  # the name is taken
            entry_point("mapping", "fractions:Fraction"),
            entry_point("dict", "builtins:dict"),  # without a signature
            entry_point("number", "math:pi"),
            entry_point("nothing", "leaving_not:thing"),
            entry_point("leaves", "leaving:thing"),
            entry_point("mute", "mute:thing"),
        ]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    with pytest.warns(UserWarning, match="sweet plug-in") as caught:
        assert sweets.names() == ["candy", "caramel", "mapping"]
    assert asked == ["adaptok.sweets"]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 7
    for name, reason in (
        ("gone", "No module named 'no_such_package'"),
        ("candy", "already"),
        ("dict", "no signature"),
        ("number", "cannot be called"),
        ("nothing", "is None"),
        ("leaves", "SystemExit: 3"),
        ("mute", "left out: Mute"),
    ):
        assert any(f"plug-in '{name}'" in text and reason in text for text in texts)
    assert sweets.get("mapping") is Fraction
    assert asked == ["adaptok.sweets"]


def test_a_plugin_may_use_the_decorator_itself(sweets, monkeypatch, recwarn):
    sweets.register("mapping")(Fraction)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry_point("mapping", "fractions:Fraction")]
    )
    assert "mapping" in sweets.names()
    assert not recwarn.list
