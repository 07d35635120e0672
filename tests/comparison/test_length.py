"""Agreement of first and last name, and recall of the first name at the end of a caption."""

from captioning.comparison.length import name_agreement


def test_agreement_of_first_and_last_name():
    captions = [
        "anna looks at this picture . so says anna .",
        "anna looks at this picture . so says boris .",
        "the picture shows a star",
        "anna looks at this picture",
    ]
    assert name_agreement(captions) == 0.25
