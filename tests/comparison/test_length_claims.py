"""Claims of the length study, never stronger than its seeds support."""

import pytest

from captioning.comparison import length_claims
from tests.helpers.comparison import length_numbers


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        (
            {"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.99), "slow": 2.0},
            ("yes", "yes", "depends"),
        ),
        ({"lstm": (1, 0.2), "rnn": (0.3, 0.2), "transformer": (1, 0.99)}, ("depends", "no", "yes")),
        (
            {"lstm": (1, 0.2), "rnn": (1, 0.2), "transformer": (1, 0.99), "slow": 1.2, "decode": 3.0},
            ("no", "depends", "depends"),
        ),
        ({"lstm": (1, 0.9), "rnn": (1, 0.1), "transformer": (1, 0.5)}, ("yes", "no", "no")),
        ({"lstm": (0.13, 0.12), "rnn": (0.12, 0.12), "transformer": (0.13, 0.12)}, ("open", "no", "open")),
    ],
)
def test_claims_are_answered_from_the_numbers(values, answers):
    claims = length_claims.answer_claims(length_numbers(**values))
    assert tuple(claim.answer for claim in claims) == answers
    assert all(f"{claim.claim}”: **{claim.answer}**" in length_claims.headline(claims) for claim in claims)
    assert all("{" not in claim.reason for claim in claims)


def test_claims_need_three_seeds_and_a_difference_that_seeds_do_not_make():
    study = length_numbers(lstm=(1, 0.9), rnn=(1, 0.1), transformer=(1, 0.99), slow=2.0)
    assert [claim.answer for claim in length_claims.answer_claims(study)] == ["yes", "yes", "depends"]
    study["recall"]["lstm"][200] = [0.1, 0.9, 0.9]  # far ahead, but one seed learned nothing
    study["recall"]["rnn"][200] = [0.09, 0.1, 0.11]
    assert length_claims.answer_claims(study)[0].answer == "no"
    two = length_numbers(lstm=(1, 0.9), rnn=(1, 0.1), transformer=(1, 0.99), slow=2.0)
    for values in two["recall"].values():
        values[200] = values[200][::2]
    claims = length_claims.answer_claims(two)
    assert [claim.answer for claim in claims] == ["open", "yes", "open"]
    assert all("fewer than 3 seeds" in claims[number].reason for number in (0, 2))


def test_claims_without_their_systems_are_not_measured():
    study = length_numbers(lstm=(1, 1), rnn=(1, 1), transformer=(1, 1))
    for key in ("quality", "recall", "agreement", "costs"):
        study[key].pop("lstm", None)
    assert {claim.answer for claim in length_claims.answer_claims(study)} == {"not measured"}
