"""The length study's figures and tables."""

from captioning.comparison import document, length_claims, length_page
from tests.helpers.comparison import length_numbers


def test_figures_and_tables_of_a_length_study():
    study = length_numbers(lstm=(1, 0.9), rnn=(1, 0.1), transformer=(1, 0.99))
    blocks = length_page.blocks(study, length_claims.answer_claims(study))
    pictures = [block for block in blocks if isinstance(block, document.Picture)]
    assert [picture.name for picture in pictures] == ["memory.png", "training_cost.png", "long.png"]
    assert all(picture.content[:4] == b"\x89PNG" for picture in pictures)
    assert sum(isinstance(block, document.Table) for block in blocks) == 6
