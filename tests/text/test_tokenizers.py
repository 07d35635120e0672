"""Tokenizers by name, and captions whose whole sentences would be words."""

from collections import Counter

import pytest

from captioning.errors import UserError
from captioning.text.tokenizer import tokenize
from captioning.text.tokenizers import TOKENIZERS, refuse_sentences_as_words


@pytest.mark.parametrize(
    ("tokenizer", "caption", "words"),
    [
        ("characters", "一只 狗，在跑。", ["一", "只", "狗", "在", "跑"]),
        ("characters", "Ｔ恤 OK!", ["ｔ", "恤", "o", "k"]),
        ("characters", "ที่นี่", ["ที่", "นี่"]),  # a vowel and a tone mark belong to their consonant
        ("characters", "カ\u3099", ["\u30ac"]),  # composed
        ("characters", "狗<unk>跑", ["狗", "<unk>", "跑"]),
        ("characters", "。 ！", []),
        ("whitespace", "一只 狗 ， 在 跑 。", ["一只", "狗", "在", "跑"]),
        ("whitespace", "A Dog's\u3000t-shirt .", ["a", "dog's", "t-shirt"]),
        ("whitespace", "", []),
        ("ptb", "A dog's t-shirt.", ["a", "dog", "'s", "t-shirt"]),
    ],
)
def test_words_on_paper(tokenizer, caption, words):
    assert TOKENIZERS[tokenizer](caption) == words


SENTENCES = {
    "Chinese": ["一个穿红色衣服的男人在公园里踢足球。", "两只狗在草地上奔跑"],
    "short Chinese": ["一只狗在跑", "两只白色的猫，在睡觉"],
    "Japanese": ["公園でサッカーをしている男性", "犬が走っています。"],
    "Thai": ["ผู้ชายกำลังเล่นฟุตบอลอยู่ในสวนสาธารณะ", "สุนัขสองตัวกำลังวิ่ง"],
    "no spaces": ["amanisridingabikedownthestreetwithadog", "thereisatablewithtwochairsinthekitchen"],
}
WORDS = {
    "English": ["a dog runs on the grass", "two men"],
    "German": ["ein Straßenbahnhaltestellenschild neben einer Fußgängerüberführung"],
    "Chinese": ["一个 穿 红色 衣服 的 男人 在 公园 里 踢 足球 。"],
    "Japanese": ["スケートボード で 遊ん で いる 男性"],
    "Thai": ["ผู้ชาย กำลัง เล่น ฟุตบอล อยู่ ใน สวนสาธารณะ"],
    "Khmer": ["បុរស ម្នាក់ កំពុង លេង បាល់ទាត់"],
    "English with a Chinese name": ["a sign that says 北京大学出版社 on a wall", "a dog runs on the grass"],
    "nothing": [],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_that_would_be_words_are_refused(language):
    counts = Counter(word for caption in SENTENCES[language] for word in tokenize(caption))
    with pytest.raises(UserError, match=r"text\.tokenizer=characters .* vocabulary\.kind=bpe") as raised:
        refuse_sentences_as_words(counts, "ptb")
    assert "\n" not in str(raised.value)
    refuse_sentences_as_words(counts, "characters")


@pytest.mark.parametrize("language", WORDS)
def test_words_are_not_refused(language):
    refuse_sentences_as_words(
        Counter(word for caption in WORDS[language] for word in tokenize(caption)), "ptb"
    )
