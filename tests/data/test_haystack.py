import pytest

from nemo_cdt.data import haystack
from nemo_cdt.data.haystack import load_haystack


def test_the_default_is_much_prose_in_sentences():
    sentences = load_haystack(None)
    assert sum(map(len, sentences)) > 100_000
    assert sum(sentence[-1] in ".!?)" for sentence in sentences) > 0.99 * len(sentences)
    assert not any("::=" in sentence or ">>>" in sentence or "\n" in sentence for sentence in sentences)


def test_a_file_is_split_into_sentences_of_normal_white_space(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("One\ntwo.  Three v. four!\n\nA heading\n\n“Five?” 六。七。", encoding="utf-8")
    expected = ["One two.", "Three v. four!", "A heading", "“Five?” 六。", "七。"]
    assert load_haystack(str(file)) == expected


def test_a_folder_is_read_in_the_order_of_its_names_up_to_the_limit(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "Second.", "a.txt": "First.", "sub/c.txt": "Third.", "d.md": "Never."}.items():
        (tmp_path / name).write_text(text)
    assert load_haystack(str(tmp_path)) == ["First.", "Second.", "Third."]
    monkeypatch.setattr(haystack, "MAX_CHARACTERS", len("First.Sec"))
    assert load_haystack(str(tmp_path)) == ["First.", "Sec"]


def test_text_that_cannot_be_used_is_one_clear_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    for path, reason in {
        tmp_path / "nowhere": "No such file",
        tmp_path / "latin.txt": "not UTF-8",
        tmp_path / "empty": "no text in it",
    }.items():
        with pytest.raises(ValueError, match=rf"^data\.path={path}: {reason}"):
            load_haystack(str(path))
