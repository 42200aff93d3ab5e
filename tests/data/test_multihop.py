"""The generated task is checked by a reader that knows nothing of the generator: it plays a sample's facts out."""

import re

import numpy as np
import pytest

from nemo_cdt.data.documents import IGNORE, TokenType
from nemo_cdt.data.multihop import MultihopDocuments, _insert
from nemo_cdt.data.stories import DROPS, MOVES, OBJECTS, PERSONS, PICKS

SAMPLES = 60
FACT = re.compile(rf"^(\w+) ({'|'.join(MOVES + PICKS + DROPS)}) the (\w+)\.$")


def documents(tokenizer, **changes):
    settings = {"seq_length": 1024, "seed": 7, "size": SAMPLES, "hops": [3, 4], "emojis": 3}
    return MultihopDocuments(tokenizer, **{**settings, **changes})


@pytest.fixture(scope="module")
def samples(byte):
    generated = documents(byte)
    return [generated.sample(index) for index in range(SAMPLES)]


def facts_of(sample):
    """The facts in the order of the text, each with its type."""
    return [
        (sample.text[span.start : span.end], span.type)
        for span in sample.spans
        if span.type in (TokenType.supporting, TokenType.interference)
    ]


def played_out(facts, thing):
    """The places where ``thing`` was, in order, and the one where it was last put down."""
    where, holder, places, dropped = {}, None, [], None
    for fact in facts:
        person, action, what = FACT.match(fact).groups()
        if action in MOVES:
            where[person] = what
        elif what == thing:
            holder = person if action in PICKS else None
            dropped = where.get(person) if action in DROPS else dropped
        if holder and where.get(holder) and places[-1:] != [where[holder]]:
            places.append(where[holder])
    return places, dropped


def answered(sample, facts):
    """The answer as a careful reader finds it, or None where the facts do not give one."""
    thing = re.search(rf"the ({'|'.join(OBJECTS)})\b", sample.question).group(1)
    places, dropped = played_out(facts, thing)
    end = dropped if sample.hops == 4 else re.search(r"before the (\w+)\?", sample.question).group(1)
    if places.count(end) != 1 or places.index(end) == 0:
        return None
    return places[places.index(end) - 1]


def test_all_facts_in_the_order_of_the_text_give_the_answer(samples):
    assert {sample.hops for sample in samples} == {3, 4}
    for sample in samples:
        assert answered(sample, [fact for fact, _ in facts_of(sample)]) == sample.answer


def test_no_answer_can_be_given_without_every_supporting_fact(samples):
    for sample in samples:
        for missing in sample.parts(TokenType.supporting):
            facts = [fact for fact, _ in facts_of(sample) if fact != missing]
            assert answered(sample, facts) != sample.answer


def test_the_reader_is_misled_when_the_person_moves_in_between(samples):
    for sample in samples:
        supporting = sample.parts(TokenType.supporting)
        person = supporting[0].split()[0]
        facts = [*supporting[:2], f"{person} went to the moon.", *supporting[2:]]
        assert answered(sample, facts) != sample.answer


def test_interference_keeps_to_the_papers_rules(samples):
    for sample in samples:
        facts = facts_of(sample)
        types = [type for _, type in facts]
        thing = re.search(rf"the ({'|'.join(OBJECTS)})\b", sample.question).group(1)
        assert types.count(TokenType.supporting) == sample.hops
        assert sample.hops <= types.count(TokenType.interference) <= 2 * sample.hops
        assert types[-1] is TokenType.interference
        assert all(thing not in fact for fact, type in facts if type is TokenType.interference)


def test_supporting_facts_stand_all_over_a_long_haystack_and_never_at_its_end(byte):
    places = []
    for sample in map(documents(byte, seq_length=8192).sample, range(40)):
        context = [span for span in sample.spans if span.type < TokenType.question]
        places += [span.start / context[-1].end for span in context if span.type is TokenType.supporting]
    assert max(places) < 0.93
    assert (np.histogram(places, bins=10, range=(0, 1))[0][:9] >= 5).all()


def test_pieces_put_at_one_place_keep_their_order():
    context = [("a", TokenType.irrelevant), ("b", TokenType.irrelevant)]
    _insert(context, np.array([1, 2, 1]), ["x", "y", "z"], TokenType.supporting)
    assert [text for text, _ in context] == ["a", "x", "y", "b", "z"]


def test_spans_cover_the_text_but_for_white_space(samples):
    for sample in samples:
        gaps = [(left.end, right.start) for left, right in zip(sample.spans, sample.spans[1:], strict=False)]
        assert all(sample.text[start:end].isspace() for start, end in gaps)
        assert (sample.spans[0].start, sample.spans[-1].end) == (0, len(sample.text))
        assert sample.parts(TokenType.answer) == [sample.answer]
        assert sample.parts(TokenType.question) == [f"Question: {sample.question}\nAnswer:"]
        assert len(sample.parts(TokenType.low_frequency)) == 3


def test_the_tokens_of_a_type_spell_the_parts_of_that_type(tokenizer):
    generated = documents(tokenizer, seq_length=700)
    for index in range(10):
        document, sample = generated[index], generated.sample(index)
        for type in TokenType:
            spelled = tokenizer.decode(document.input_ids[document.types == type], skip_special_tokens=True)
            assert "".join(spelled.split()) == "".join("".join(sample.parts(type)).split())


def test_only_the_answer_and_eos_are_labelled(tokenizer):
    for document in map(documents(tokenizer).__getitem__, range(10)):
        labelled = document.labels != IGNORE
        assert (document.labels[labelled] == document.input_ids[labelled]).all()
        sample_end = tokenizer.decode(document.input_ids[labelled])
        assert re.fullmatch(r" \w+<\|eos\|>", sample_end)
        assert labelled[-1]
        assert (np.diff(np.flatnonzero(labelled)) == 1).all()


def test_bos_is_irrelevant_even_before_a_supporting_fact(bpe):
    generated = documents(bpe, hops=[3], seq_length=250, emojis=0, size=200)
    starts = {generated.sample(index).spans[0].type for index in range(40)}
    assert len(starts) > 1
    assert {int(generated[index].types[0]) for index in range(40)} == {TokenType.irrelevant}


@pytest.mark.parametrize("seq_length", [600, 1024, 4096])
def test_a_document_is_as_long_as_the_sequence_or_slightly_shorter(tokenizer, seq_length):
    generated = documents(tokenizer, seq_length=seq_length)
    lengths = [len(generated[index].input_ids) for index in range(15)]
    assert max(lengths) <= seq_length + 1
    assert min(lengths) >= seq_length - 40
    assert np.mean(lengths) >= seq_length - 10


def test_the_shortest_sequence_allowed_fits_and_a_shorter_one_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"data\.seq_length=64 is too short .* at least \d+$") as error:
        documents(tokenizer, seq_length=64)
    shortest = int(str(error.value).split()[-1])
    generated = documents(tokenizer, seq_length=shortest, size=200)
    assert max(len(generated[index].input_ids) for index in range(200)) <= shortest + 1


def test_a_document_depends_on_seed_split_and_index_alone(byte):
    def texts(**changes):
        generated = documents(byte, **changes)
        return [generated.sample(index).text for index in reversed(range(20))]

    assert texts() == texts(size=20)
    everything = [*texts(), *texts(seed=8), *texts(split="validation")]
    assert len(set(everything)) == 60


def test_a_document_is_its_sample(byte):
    generated = documents(byte)
    assert byte.decode(generated[5].input_ids) == generated.sample(5).text + "<|eos|>"


def test_a_length_is_that_of_the_document(byte):
    generated = documents(byte, size=3)
    assert [generated.length(index) for index in range(3)] == [len(generated[index].input_ids) for index in range(3)]


def test_a_haystack_of_the_users_is_repeated_where_it_is_short(byte, tmp_path):
    (tmp_path / "a.txt").write_text("Call me Ishmael. It was night.")
    sample = documents(byte, haystack=str(tmp_path)).sample(0)
    *whole, last = sample.parts(TokenType.irrelevant)
    assert set(whole) == {"Call me Ishmael.", "It was night."}
    assert len(whole) > 10
    assert last.split()[0] in ("Call", "It")


def test_a_haystack_without_a_space_still_fits(byte, tmp_path):
    (tmp_path / "a.txt").write_text("東京" * 2000, encoding="utf-8")
    assert len(documents(byte, haystack=str(tmp_path))[0].input_ids) <= 1025


def test_indices_end_with_the_size(byte):
    generated = documents(byte, size=2)
    assert len(generated) == len(list(generated)) == 2
    with pytest.raises(IndexError):
        generated[-1]


def asked_for(sample):
    """The answer of a question of one or two hops, as a careful reader finds it."""
    facts = [FACT.match(fact).groups() for fact, _ in facts_of(sample)]
    where = {}
    if person := re.fullmatch(rf"Where is ({'|'.join(PERSONS)})\?", sample.question):
        return [what for who, action, what in facts if who == person[1] and action in MOVES][-1]
    thing = re.fullmatch(r"Where is the (\w+)\?", sample.question)[1]
    holder, place = None, None
    for who, action, what in facts:
        if action in MOVES:
            where[who] = what
        elif what == thing:
            holder = who if action in PICKS else None
        place = where.get(holder, place)
    return place


@pytest.mark.parametrize("hops", [1, 2])
def test_a_question_of_one_or_two_hops_has_its_answer_in_the_facts(byte, hops):
    generated = documents(byte, hops=[hops])
    for sample in map(generated.sample, range(SAMPLES)):
        assert len(sample.parts(TokenType.supporting)) == sample.hops == hops
        assert asked_for(sample) == sample.answer


def test_a_needle_is_the_one_secret_word_of_the_person_that_is_asked_for(byte):
    generated = documents(byte, needles=1.0)
    for sample in map(generated.sample, range(SAMPLES)):
        words = dict(re.findall(r"The secret word of (\w+) is: (\w+)\.", sample.text))
        assert len(words) == 6
        assert words[re.fullmatch(r"What is the secret word of (\w+)\?", sample.question)[1]] == sample.answer
        assert sample.parts(TokenType.supporting)[0].endswith(f": {sample.answer}.")


def test_needles_are_so_large_a_share(byte):
    generated = documents(byte, needles=0.25, size=400)
    needles = sum(generated.sample(index).hops == 0 for index in range(400))
    assert 70 <= needles <= 130


BEGUN = {
    0: r"What is the secret word of (\w+)\?\nAnswer: The secret word of \1 is:",
    1: r"Where is (\w+)\?\nAnswer: \1 is in the",
    2: r"Where is the (\w+)\?\nAnswer: The \1 is in the",
    3: r"Where was the (\w+) before the (\w+)\?\nAnswer: Before the \2, the \1 was in the",
    4: r"Where was the (\w+)'s location .* left or dropped\?\nAnswer: Before that, the \1 was in the",
}


@pytest.mark.parametrize("hops", BEGUN)
def test_an_answer_is_begun_by_a_sentence_whose_next_word_it_is_and_nothing_else_is_labelled(tokenizer, hops):
    generated = documents(tokenizer, hops=[hops or 3], needles=float(not hops), begun=True)
    for index in range(10):
        document, sample = generated[index], generated.sample(index)
        (question,) = sample.parts(TokenType.question)
        assert re.fullmatch("Question: " + BEGUN[hops], question)
        assert sample.text.endswith(f"{question} {sample.answer}")
        labelled = document.labels != IGNORE
        assert tokenizer.decode(document.input_ids[labelled]) == f" {sample.answer}"
        assert labelled[-1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_chat_is_what_the_template_writes(tokenizer, begun):
    generated = documents(tokenizer, hops=[1], chat=True, begun=begun)
    for index in range(5):
        document, sample = generated[index], generated.sample(index)
        beginning = re.sub(r"Where is (\w+)\?", r"\1 is in the ", sample.question) if begun else ""
        question = f"\nQuestion: {sample.question}"
        content = sample.text[len(sample.parts(TokenType.irrelevant)[0]) : sample.text.index(question)] + question
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": beginning + sample.answer}]
        expected = tokenizer.apply_chat_template(messages)
        assert document.input_ids.tolist() == expected[: len(document.input_ids)]
        labelled = tokenizer.decode(document.input_ids[document.labels != IGNORE])
        rest = tokenizer.decode(expected[len(document.input_ids) :])
        assert labelled + rest == (" " if begun else "") + sample.answer + tokenizer.decode(expected[-1:])
        assert rest.strip() == "" or begun


def test_a_chat_needs_a_template_that_writes_messages_as_they_are(byte):
    template, loud = byte.chat_template, "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    try:
        for wrong, message in ((None, "chat template; this one has none"), (loud, "does not write messages as they")):
            byte.chat_template = wrong
            with pytest.raises(ValueError, match=message):
                documents(byte, chat=True)
    finally:
        byte.chat_template = template


@pytest.mark.parametrize("changes", [{"hops": [1, 2]}, {"needles": 1.0}, {"begun": True}, {"chat": True}])
def test_the_shortest_sequence_of_every_form_fits(tokenizer, changes):
    with pytest.raises(ValueError, match=r"at least \d+$") as error:
        documents(tokenizer, seq_length=16, **changes)
    shortest = int(str(error.value).split()[-1])
    generated = documents(tokenizer, seq_length=shortest, size=100, **changes)
    assert max(len(generated[index].input_ids) for index in range(100)) <= shortest + 1
