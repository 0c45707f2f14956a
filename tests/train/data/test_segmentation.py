"""How scripts are told apart, and that a text is the sum of its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.segmentation import Segmenter, detect_segmenter, ends_sentence, strip_punctuation

SAMPLES = {
    "English": ("He went out, and wept bitterly.", "spaces", ["He", "went", "out,", "and", "wept", "bitterly."]),
    "Kashmiri": ("كٲشُر زَبان چھِ أکھ زَبان۔", "spaces", ["كٲشُر", "زَبان", "چھِ", "أکھ", "زَبان۔"]),
    "Tamil": ("தமிழ் ஒரு மொழி ஆகும்.", "spaces", ["தமிழ்", "ஒரு", "மொழி", "ஆகும்."]),
    "Amharic": ("አማርኛ የኢትዮጵያ ቋንቋ ነው።", "spaces", ["አማርኛ", "የኢትዮጵያ", "ቋንቋ", "ነው።"]),
    "Dzongkha": ("རྫོང་ཁ་འདི་ འབྲུག་གི་", "units", ["རྫོང་", "ཁ་", "འདི་ ", "འབྲུག་", "གི་"]),
    "Khmer": ("ភាសាខ្មែរ ជាភាសា។", "units", ["ភា", "សា", "ខ្", "មែ", "រ ", "ជា", "ភា", "សា។"]),
    "marked Khmer": ("ក្នុង\u200bបង្អួច\u200bនេះ ជា។", "marks", ["ក្នុង\u200b", "បង្អួច\u200b", "នេះ ", "ជា។"]),
    "Chinese": ("中文字，在这里。", "units", ["中", "文", "字，", "在", "这", "里。"]),
}


@pytest.mark.parametrize("language", SAMPLES)
def test_words_of_each_script(language: str) -> None:
    text, ends, words = SAMPLES[language]
    writing = detect_segmenter([text])
    assert writing.ends == ends
    assert writing.split(text) == words
    assert writing.join(words) == text
    assert all(strip_punctuation(word) for word in words)
    assert any(writing.is_content_word(strip_punctuation(word)) for word in words)
    assert ends_sentence(words[-1]) == (text[-1] in ".。។۔።")


@given(st.text(max_size=60), st.sampled_from([Segmenter(), Segmenter("units", shortest=1)]))
def test_a_text_is_the_sum_of_its_words(text: str, writing: Segmenter) -> None:
    assert writing.join(writing.split(text)) == " ".join(text.split())


@given(st.text(max_size=12))
def test_a_bare_word_is_letters(word: str) -> None:
    assert strip_punctuation(strip_punctuation(word)) == strip_punctuation(word)
    assert strip_punctuation(word) in word


def test_names_are_not_asked_for_where_a_script_has_capitals() -> None:
    writing = Segmenter()
    assert not writing.is_content_word("David")
    assert writing.is_content_word("david")
    assert writing.is_content_word("زَبان")
