"""How the mock reads bodies: as Go does, so that what smuggles there smuggles here."""

import json

import pytest

from neuronetz.embedded.mock_requests import Refused, check_options, read_body


def test_the_last_of_keys_that_differ_in_case_wins() -> None:
    assert read_body(b'{"model":"mine","MODEL":"theirs"}').get("model") == "theirs"
    assert read_body(b'{"MODEL":"theirs","model":"mine"}').get("model") == "mine"
    assert read_body(b'{"model":"mine","model":"theirs"}').get("model") == "theirs"


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ('{"\u212aeep_alive": 5}', "keep_alive", 5),
        ('{"\u017ftream": false}', "stream", False),
        ('{"\\u017fTREAM": false}', "stream", False),
        ('{"_DEBUG_RENDER_ONLY": true}', "_debug_render_only", True),
    ],
)
def test_the_kelvin_sign_and_the_long_s_fold(body: str, field: str, value: object) -> None:
    assert read_body(body.encode()).get(field) == value


def test_keys_of_messages_fold_and_those_of_options_do_not() -> None:
    body = read_body(b'{"messages":[{"ROLE":"USER","Content":"hi"}],"options":{"NUM_PREDICT":5}}')
    assert body.get("messages") == [{"role": "user", "content": "hi"}]
    assert body.predict is None


def test_what_follows_the_first_value_is_ignored() -> None:
    assert read_body(b'{"model":"mine"} {"model":"theirs"} rubbish').get("model") == "mine"


def test_null_leaves_a_field_alone() -> None:
    assert read_body(b'{"model":"mine","MODEL":null}').get("model") == "mine"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"model":5}',
        b'{"model":true}',
        b'{"messages":{}}',
        b'{"messages":["hi"]}',
        b'{"messages":[{"content":["parts"]}]}',
        b'{"stream":"yes"}',
        b'{"stream":1}',
        b'{"options":[]}',
        b'{"model":NaN}',
        b"[" * 100_000,
    ],
)
def test_what_go_cannot_decode_is_a_400(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_body(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"stop": "x"},
        {"stop": [1]},
        {"num_ctx": "9"},
        {"num_predict": True},
        {"use_mmap": 1},
    ],
)
def test_a_wrong_option_is_a_500(options: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        check_options(read_body(json.dumps({"model": "m", "options": options}).encode()), thinks=False)
    assert caught.value.status == 500


def test_unknown_and_null_options_are_ignored() -> None:
    body = read_body(b'{"model":"m","options":{"mirostat":"x","temperature":null,"num_predict":7.0}}')
    check_options(body, thinks=False)
    assert body.predict == 7


@pytest.mark.parametrize(
    ("fields", "thinks", "status"),
    [
        ({"format": "yaml"}, False, 500),
        ({"format": 5}, False, 500),
        ({"think": "much"}, True, 400),
        ({"think": 1.5}, True, 400),
        ({"think": True}, False, 400),
    ],
)
def test_format_and_think_are_checked(fields: dict[str, object], thinks: bool, status: int) -> None:
    with pytest.raises(Refused) as caught:
        check_options(read_body(json.dumps({"model": "m", **fields}).encode()), thinks=thinks)
    assert caught.value.status == status


@pytest.mark.parametrize(("asked", "bound"), [(-1, None), (-2, None), (0, None), (1, 1), (4096, 4096)])
def test_num_predict_of_zero_or_less_means_no_bound(asked: int, bound: int | None) -> None:
    assert read_body(b'{"options":{"num_predict":%d}}' % asked).predict == bound


def test_half_a_surrogate_pair_is_read_as_go_reads_it() -> None:
    body = read_body(b'{"model":"\\ud800x","options":{"\\udfff":"\\ud83d\\ude00"}}')
    assert body.fields == {"model": "\ufffdx", "options": {"\ufffd": "\U0001f600"}}


@pytest.mark.parametrize("image", ["", "aGk=", "aG\nk=\r\n", "aGVs"])
def test_images_are_base64(image: str) -> None:
    assert read_body(json.dumps({"images": [image]}).encode()).get("images") == [image]


@pytest.mark.parametrize(
    "image", ["aGk", "aGk==", "aGk=x", "aG k=", "aGk-", "data:image/png;base64,aGk=", "é", 5, {}]
)
def test_what_go_cannot_read_as_an_image_is_a_400(image: object) -> None:
    for fields in ({"images": [image]}, {"messages": [{"role": "user", "images": [image]}]}):
        with pytest.raises(Refused) as caught:
            read_body(json.dumps(fields).encode())
        assert caught.value.status == 400


@pytest.mark.parametrize("top", [-1, 21])
def test_top_logprobs_have_bounds(top: int) -> None:
    with pytest.raises(Refused, match="top_logprobs must be between 0 and 20") as caught:
        check_options(read_body(b'{"logprobs":true,"top_logprobs":%d}' % top), thinks=False)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("roles", "ends"), [([], False), (["user"], False), (["user", "TOOL"], True), (["tool", "user"], False)]
)
def test_whether_a_tool_spoke_last(roles: list[str], ends: bool) -> None:
    body = read_body(json.dumps({"messages": [{"role": role} for role in roles]}).encode())
    assert body.ends_with_tool is ends
