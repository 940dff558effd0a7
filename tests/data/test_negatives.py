import random

import pytest

from diptych.data.negatives import swap_words


def words(text: str) -> list[str]:
    return sorted(text.lower().strip(".").split())


@pytest.mark.parametrize(
    "caption",
    [
        "a red cube left of a blue sphere",
        "A woman posing for the camera standing on skis.",
        "Man riding horse",
        "two dogs and one Cat",
        "Ein großer Hund jagt die weiße Katze",
    ],
)
@pytest.mark.parametrize("seed", range(10))
def test_swaps_two_words_and_keeps_the_rest(caption: str, seed: int) -> None:
    swapped = swap_words(caption, random.Random(seed))
    assert swapped is not None
    assert swapped.lower() != caption.lower()
    assert words(swapped) == words(caption)
    assert sum(a != b for a, b in zip(swapped.lower().split(), caption.lower().split(), strict=True)) == 2
    assert swapped == swap_words(caption, random.Random(seed))


def test_modifiers_go_with_modifiers_and_heads_with_heads() -> None:
    found = {swap_words("a red cube on a blue sphere", random.Random(seed)) for seed in range(40)}
    assert found == {"a blue cube on a red sphere", "a red sphere on a blue cube"}


def test_function_words_stay() -> None:
    for seed in range(20):
        swapped = swap_words("the dog is under the table", random.Random(seed))
        assert swapped == "the table is under the dog"


@pytest.mark.parametrize("caption", ["", "dog", "the of and", "Cat cat CAT", "12 34", "dog, a dog and the dog."])
def test_none_where_nothing_can_be_swapped(caption: str) -> None:
    assert swap_words(caption, random.Random(0)) is None


@pytest.mark.parametrize("caption", ["a cat and a dog", "the dog next to a cat", "a cat near a dog."])
def test_never_says_the_same_in_another_order(caption: str) -> None:
    assert all(swap_words(caption, random.Random(seed)) is None for seed in range(10))


def test_order_of_modifiers_is_no_negative() -> None:
    for seed in range(20):
        assert swap_words("a big brown bear on a rock", random.Random(seed)) != "a brown big bear on a rock"


def test_capitals_follow_the_place_but_abbreviations_stay() -> None:
    assert swap_words("The dogs on the TV", random.Random(0)) == "The TV on the dogs"
    assert swap_words("Dog on a table", random.Random(0)) == "Table on a dog"
