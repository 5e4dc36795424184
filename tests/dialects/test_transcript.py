"""What was asked and answered as text: bounded, honest about cuts, with labels that no text can forge."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.ollama_reply import NativeLines, NativeObject
from neuronetz.dialects.reply import StreamedReply, WholeReply
from neuronetz.dialects.transcript import CappedText, Excerpt, Transcript, labelled


def asked(endpoint: str, limit: int = 65536, **body: Any) -> Excerpt:
    call = parse_call(f"/api/{endpoint}", json.dumps({"model": "m", **body}).encode(), BodyPolicy())
    assert call.problem is None
    return call.prompt_text(limit)


@given(st.lists(st.text()), st.integers(0, 40))
def test_gathered_text_is_the_beginning_of_the_whole_up_to_the_limit(texts: list[str], limit: int) -> None:
    capped = CappedText(limit)
    for text in texts:
        capped.add(text)
    whole = "".join(texts).replace("\x00", "\ufffd").encode("utf-8", "replace")
    kept = capped.first(len(capped)).encode()
    assert whole.startswith(kept)
    assert len(kept) <= limit
    assert capped.truncated == (kept != whole)
    # No more is missing at the cut than the character that did not fit.
    assert not capped.truncated or len(kept) > limit - 4


def test_a_cut_falls_between_characters() -> None:
    for limit, kept in ((1, ""), (2, "é"), (3, "é"), (4, "éé"), (5, "éé")):
        capped = CappedText(limit)
        capped.add("éé€")
        assert (capped.first(len(capped)), capped.truncated) == (kept, True)


label = st.sampled_from(["user", "assistant", "system"])


@given(st.lists(st.tuples(label, st.text())))
def test_a_line_that_is_not_indented_is_a_label_of_ours(entries: list[tuple[str, str]]) -> None:
    excerpt = labelled(entries, 10_000_000)
    lines = excerpt.text.split("\n") if entries else []
    assert [line.partition(":")[0] for line in lines if not line.startswith("  ")] == [name for name, _ in entries]
    assert not excerpt.truncated


def test_a_chat_is_told_by_role_with_images_as_number_and_size_alone() -> None:
    image = base64.b64encode(b"x" * 1000).decode()
    excerpt = asked(
        "chat",
        tools=[{"type": "function", "function": {"name": "weather", "description": "long"}}],
        messages=[
            {"role": "System", "content": "Be terse."},
            {"role": "user", "content": "two\nlines", "images": [image, image]},
            {"role": "user", "content": "one", "images": [image]},
            {
                "role": "assistant",
                "thinking": "hm",
                "content": "",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ],
    )
    assert excerpt.text.split("\n") == [
        "tools: weather",
        "system: Be terse.",
        "user (2 images, 2000 bytes): two",
        "  lines",
        "user (1 image, 1000 bytes): one",
        "assistant thinking: hm",
        "assistant: ",
        'assistant tool_calls: [{"function":{"name":"weather","arguments":{"city":"Oslo"}}}]',
        "tool: rain",
    ]
    assert image[:40] not in excerpt.text


def test_a_role_cannot_pass_for_more_than_one() -> None:
    excerpt = asked("chat", messages=[{"role": "user: hi\nsystem", "content": "x"}])
    assert excerpt.text == "user??hi?system: x"


def test_a_generation_is_told_with_its_system_prompt_and_template() -> None:
    excerpt = asked(
        "generate", prompt="tell", suffix="end", system="Be terse.", template="{{ .Prompt }}", context=[1, 2, 3]
    )
    assert excerpt.text.split("\n") == [
        "context: 3 tokens",
        "system: Be terse.",
        "template: {{ .Prompt }}",
        "prompt: tell",
        "suffix: end",
    ]


def test_embeddings_are_told_text_by_text() -> None:
    assert asked("embed", input=["one", "two"]).text == "input: one\ninput: two"
    assert asked("embed", input="one").text == "input: one"
    assert asked("embeddings", prompt="one").text == "prompt: one"


@pytest.mark.parametrize(
    ("endpoint", "body"), [("chat", {"messages": []}), ("generate", {"system": "x"}), ("embed", {"input": []})]
)
def test_loading_a_model_asks_nothing(endpoint: str, body: dict[str, Any]) -> None:
    assert asked(endpoint, **body) == Excerpt("", False)


def test_a_long_prompt_is_cut_and_says_so() -> None:
    excerpt = asked("generate", 20, prompt="é" * 1_000_000)
    assert excerpt == Excerpt("prompt: " + "é" * 6, True)
    assert asked("chat", 30, messages=[{"role": "user", "content": "x" * 9}] * 3).text.count("user: ") == 2


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "done": False, **fields}).encode() + b"\n"


def test_a_stream_tells_its_answer_as_it_is() -> None:
    transcript = Transcript(1000)
    reply = StreamedReply(NativeLines(), 1, 10_000, transcript)
    data = line(message={"content": "a b"}) + line(message={"content": "\u00e9\n"}) + line(response="c")
    assert reply.feed(data) == data
    assert transcript.excerpt() == Excerpt("", False)
    transcript.delivered()
    assert transcript.excerpt() == Excerpt("a b\u00e9\nc", False)


def test_only_what_was_delivered_is_told() -> None:
    transcript = Transcript(3)
    reply = StreamedReply(NativeLines(), 1, 10_000, transcript)
    reply.feed(line(response="ab"))
    transcript.delivered()
    reply.feed(line(response="cdef"))
    assert transcript.excerpt() == Excerpt("ab", False)
    transcript.delivered()
    assert transcript.excerpt() == Excerpt("abc", True)


def test_thoughts_and_calls_of_tools_are_marked() -> None:
    transcript = Transcript(1000)
    reply = StreamedReply(NativeLines(), 1, 10_000, transcript)
    calls = [{"function": {"name": "f", "arguments": {}}}]
    reply.feed(line(message={"content": "", "thinking": "let me"}) + line(message={"thinking": " see"}))
    reply.feed(line(message={"content": "so"}) + line(message={"content": "", "tool_calls": calls}))
    reply.feed(line(message={"content": ""}, done=True))
    transcript.delivered()
    assert transcript.excerpt().text == f"[thinking]\nlet me see\n[answer]\nso\n[tool_calls]\n{json.dumps(calls)}"


def test_a_line_that_does_not_pass_is_not_told() -> None:
    transcript = Transcript(1000)
    reply = StreamedReply(NativeLines(), 1, 10_000, transcript)
    reply.feed(line(response="good") + b'{"error":"secret","response":"bad"}\n' + line(response="late"))
    transcript.delivered()
    assert transcript.excerpt().text == "good"


def test_a_whole_reply_is_told_at_its_end() -> None:
    for body, text in (
        ({"message": {"content": "a b", "thinking": "hm"}, "done": True}, "[thinking]\nhm\n[answer]\na b"),
        ({"response": "a b", "done": True}, "a b"),
        ({"embeddings": [[0.1]]}, ""),
        # What cannot be told is passed on all the same.
        ({"response": 7}, ""),
    ):
        transcript = Transcript(1000)
        reply = WholeReply(NativeObject(), 1, 10_000, transcript)
        data = json.dumps(body).encode()
        reply.feed(data)
        assert reply.eof() == data
        transcript.delivered()
        assert transcript.excerpt().text == text


def test_nul_which_postgresql_cannot_hold_is_replaced() -> None:
    transcript = Transcript(1000)
    StreamedReply(NativeLines(), 1, 10_000, transcript).feed(line(response="a\x00b"))
    transcript.delivered()
    assert transcript.excerpt().text == "a\ufffdb"
    assert asked("generate", prompt="a\x00b").text == "prompt: a\ufffdb"
