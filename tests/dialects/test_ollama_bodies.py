"""Bodies of Ollama's dialect: what is sent upstream, what is dropped, what is refused."""

import base64
import json
from typing import Any

import msgspec
import pytest

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.native_call import NativeCall
from neuronetz.errors import InvalidRequest, NotFound
from neuronetz.settings import Settings

POLICY = BodyPolicy()
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
GENERATE = {"model": "m", "prompt": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": CHAT,
    "/api/generate": GENERATE,
    "/api/embed": {"model": "m", "input": "hello"},
    "/api/embeddings": {"model": "m", "prompt": "hello"},
    "/api/show": {"model": "m"},
}


def call(endpoint: str, body: object, policy: BodyPolicy = POLICY) -> NativeCall:
    path = endpoint if endpoint.startswith("/") else f"/api/{endpoint}"
    return parse_call(path, json.dumps(body).encode(), policy)


def sent(endpoint: str, body: object, policy: BodyPolicy = POLICY, predict: int | None = None) -> dict[str, Any]:
    parsed = call(endpoint, body, policy)
    if parsed.problem is not None:
        raise parsed.problem
    return msgspec.json.decode(parsed.upstream_body("installed:latest", predict), type=dict[str, Any])


def problem(endpoint: str, body: object, policy: BodyPolicy = POLICY) -> InvalidRequest:
    found = call(endpoint, body, policy).problem
    assert found is not None
    assert "\n" not in found.message
    return found


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_least_body_is_sent_with_the_checked_name(endpoint: str) -> None:
    body = BODIES[endpoint]
    expected = {**body, "model": "installed:latest"}
    if endpoint in {"/api/chat", "/api/generate"}:
        expected["stream"] = True
    assert sent(endpoint, body) == expected
    assert call(endpoint, body).upstream_path == endpoint


def test_an_endpoint_without_a_body_is_no_call() -> None:
    with pytest.raises(NotFound):
        parse_call("/api/pull", b"{}", POLICY)


@pytest.mark.parametrize("endpoint", BODIES)
def test_every_field_is_known_or_dropped(endpoint: str) -> None:
    extra = {"_debug_render_only": True, "_DEBUG_RENDER_ONLY": True, "insecure": True, "": 1, "x": {"model": "y"}}
    assert sent(endpoint, {**BODIES[endpoint], **extra}) == sent(endpoint, BODIES[endpoint])


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize("key", ["MODEL", "Model", "modeL"])
def test_another_spelling_of_a_known_key_is_refused(endpoint: str, key: str) -> None:
    for body in ({**BODIES[endpoint], key: "theirs"}, {key: "theirs", **BODIES[endpoint]}):
        found = problem(endpoint, body)
        assert (found.message, found.param) == ('model must be spelled exactly "model"', "model")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("keep_alive", {**CHAT, "\u212aeep_alive": 0}),
        ("stream", {**CHAT, "\u017ftream": False}),
        ("keep_alive", {**CHAT, "Keep_Alive": 0}),
        ("messages", {**CHAT, "me\u017f\u017fages": []}),
        ("options", {**CHAT, "Options": {}}),
        ("messages[0].role", {"model": "m", "messages": [{"role": "user", "ROLE": "system"}]}),
        ("messages[0].content", {"model": "m", "messages": [{"role": "user", "Content": "x"}]}),
        (
            "messages[1].tool_calls[0].function.arguments",
            {
                "model": "m",
                "messages": [
                    CHAT["messages"][0],
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "Arguments": {}}}]},
                ],
            },
        ),
        ("tools[0].function", {**CHAT, "tools": [{"type": "function", "Function": {}}]}),
        ("tools[0].function.name", {**CHAT, "tools": [{"function": {"NAME": "x"}}]}),
        ("tools[0].function.parameters.$defs", {**CHAT, "tools": [{"function": {"parameters": {"$Defs": 1}}}]}),
        (
            "tools[0].function.parameters.properties.*.anyOf",
            {**CHAT, "tools": [{"function": {"parameters": {"properties": {"p": {"anyof": []}}}}}]},
        ),
    ],
)
def test_spellings_that_fold_are_refused_at_every_level(path: str, body: object) -> None:
    assert problem("/api/chat", body).param == path


def test_maps_keep_their_keys_whatever_their_case() -> None:
    arguments = {"Zebra": 1, "apple": {"Model": "x"}, "APPLE": None, "\u212aelvin": [1.5]}
    schema = {"Type": "object", "properties": {"Z": {"type": "string"}, "a": {"type": "integer", "minimum": 1}}}
    body = {
        "model": "m",
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}],
        "format": schema,
        "options": {"Temperature": "hot", "TEMPERATURE": 9, "temperature": 0.5},
    }
    got = sent("/api/chat", body)
    assert list(got["messages"][0]["tool_calls"][0]["function"]["arguments"].items()) == list(arguments.items())
    assert json.dumps(got["format"]) == json.dumps(schema)
    assert got["options"] == {"temperature": 0.5}


def test_tool_properties_keep_their_order_and_lose_what_ollama_does_not_read() -> None:
    properties = {
        "zeta": {"type": "string", "description": "z", "title": "Zeta", "default": "x"},
        "alpha": {"type": ["integer", "null"], "enum": [1, None, "x"]},
        "Nested": {"type": "object", "properties": {"b": {"type": "string"}, "a": {"anyOf": [{"type": "null"}]}}},
        "list": {"type": "array", "items": {"Type": "anything", "at": ["all"]}},
    }
    parameters = {
        "type": "object",
        "$defs": {"X": 1},
        "required": ["zeta"],
        "properties": properties,
        "title": "t",
    }
    tools = [
        {
            "type": "function",
            "strict": True,
            "function": {"name": "f", "description": "d", "parameters": parameters},
        }
    ]
    got = sent("/api/chat", {**CHAT, "tools": tools})["tools"][0]
    assert "strict" not in got
    kept = got["function"]["parameters"]
    assert "title" not in kept
    assert kept["$defs"] == {"X": 1}
    assert list(kept["properties"]) == ["zeta", "alpha", "Nested", "list"]
    assert kept["properties"]["zeta"] == {"type": "string", "description": "z"}
    assert kept["properties"]["alpha"] == properties["alpha"]
    assert list(kept["properties"]["Nested"]["properties"]) == ["b", "a"]
    assert kept["properties"]["list"] == properties["list"]


def test_null_is_absence() -> None:
    nothing = dict.fromkeys(["stream", "format", "options", "think", "keep_alive", "tools", "top_logprobs"])
    assert sent("/api/chat", {**CHAT, **nothing}) == sent("/api/chat", CHAT)
    assert sent("/api/chat", {**CHAT, "options": {"seed": None, "stop": None}})["options"] == {}
    assert problem("/api/chat", {**CHAT, "model": None}).message == "model is required"


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": "  "}])
def test_a_model_is_required(endpoint: str, model: dict[str, str]) -> None:
    body = {key: value for key, value in BODIES[endpoint].items() if key != "model"}
    found = problem(endpoint, {**body, **model})
    assert (found.message, found.param) == ("model is required", "model")


@pytest.mark.parametrize(
    "name", ["a\x00b", "a\nb", "a\x7f", "a\u200bb", "a\u2028b", "x" * 201, 7, ["m"], {"a": 1}, True]
)
def test_a_name_that_is_none_is_refused_and_not_kept(name: object) -> None:
    parsed = call("/api/chat", {**CHAT, "model": name})
    assert parsed.problem is not None
    assert parsed.problem.param == "model"
    assert parsed.model is None


def test_names_of_all_forms_pass() -> None:
    for name in ["m", "m:7b", "ns/m", "localhost:5000/ns/m:Tag", "hf.co/a/B-GGUF:Q4_K_M", "x" * 200]:
        assert call("/api/chat", {**CHAT, "model": name}).model == name


def test_show_takes_name_for_model_and_sends_model() -> None:
    assert call("/api/show", {"name": "n"}).model == "n"
    assert call("/api/show", {"name": "n", "model": "m"}).model == "m"
    assert sent("/api/show", {"name": "n", "verbose": True, "system": "x", "options": {"num_ctx": 1}}) == {
        "model": "installed:latest",
        "verbose": True,
    }
    assert problem("/api/chat", {**CHAT, "model": None, "name": "n"}).message == "model is required"


@pytest.mark.parametrize(
    ("endpoint", "change", "param"),
    [
        ("chat", {"messages": "hello"}, "messages"),
        ("chat", {"messages": {"role": "user"}}, "messages"),
        ("chat", {"messages": [None]}, "messages[0]"),
        ("chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": ""}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": 1}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "images": "x"}]}, "messages[0].images"),
        (
            "chat",
            {"messages": [{"role": "user", "images": ["data:image/png;base64,AA=="]}]},
            "messages[0].images[0]",
        ),
        ("chat", {"messages": [{"role": "user", "images": ["AAA"]}]}, "messages[0].images[0]"),
        ("chat", {"messages": [{"role": "user", "images": ["AA-_"]}]}, "messages[0].images[0]"),
        ("chat", {"messages": [{"role": "user", "images": ["\u00e9"]}]}, "messages[0].images[0]"),
        ("chat", {"messages": [{"role": "user", "tool_calls": [{"function": {"arguments": "{}"}}]}]}, None),
        ("chat", {"messages": [{"role": "user"}] * 10_001}, "messages"),
        ("chat", {"tools": {}}, "tools"),
        ("chat", {"tools": [{}] * 1_001}, "tools"),
        ("chat", {"tools": [{"function": {"parameters": {"required": "x"}}}]}, None),
        ("chat", {"tools": [{"function": {"parameters": {"properties": {"p": True}}}}]}, None),
        ("chat", {"stream": "true"}, "stream"),
        ("chat", {"stream": 1}, "stream"),
        ("chat", {"format": "yaml"}, "format"),
        ("chat", {"format": ["json"]}, "format"),
        ("chat", {"format": True}, "format"),
        ("chat", {"think": "maximum"}, "think"),
        ("chat", {"think": 1}, "think"),
        ("chat", {"think": []}, "think"),
        ("chat", {"logprobs": 1}, "logprobs"),
        ("chat", {"top_logprobs": 21}, "top_logprobs"),
        ("chat", {"top_logprobs": -1}, "top_logprobs"),
        ("chat", {"truncate": "no"}, "truncate"),
        ("chat", {"options": []}, "options"),
        ("chat", {"options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"options": {"temperature": True}}, "options.temperature"),
        ("chat", {"options": {"top_p": 1e39}}, "options.top_p"),
        ("chat", {"options": {"top_k": 1.5}}, "options.top_k"),
        ("chat", {"options": {"top_k": "40"}}, "options.top_k"),
        ("chat", {"options": {"seed": False}}, "options.seed"),
        ("chat", {"options": {"num_ctx": "9"}}, "options.num_ctx"),
        ("chat", {"options": {"num_predict": 2**32 - 1}}, "options.num_predict"),
        ("chat", {"options": {"stop": ["a"] * 1_001}}, "options.stop"),
        ("chat", {"options": {"stop": "x"}}, "options.stop"),
        ("chat", {"options": {"stop": ["x", 1]}}, "options.stop[1]"),
        ("chat", {"keep_alive": True}, "keep_alive"),
        ("chat", {"keep_alive": "5 m"}, "keep_alive"),
        ("chat", {"keep_alive": "5"}, "keep_alive"),
        ("chat", {"keep_alive": ""}, "keep_alive"),
        ("chat", {"keep_alive": "1d"}, "keep_alive"),
        ("chat", {"keep_alive": "1" * 1000 + "s"}, "keep_alive"),
        ("chat", {"keep_alive": [5]}, "keep_alive"),
        ("generate", {"prompt": ["x"]}, "prompt"),
        ("generate", {"context": [1.5]}, "context[0]"),
        ("generate", {"context": [-1]}, "context[0]"),
        ("generate", {"context": [1, True]}, "context[1]"),
        ("generate", {"context": [1, 2**31]}, "context[1]"),
        ("generate", {"context": 5}, "context"),
        ("generate", {"raw": "x"}, "raw"),
        ("generate", {"images": [1]}, "images[0]"),
        ("embed", {"input": 7}, "input"),
        ("embed", {"input": ["x", 7]}, "input"),
        ("embed", {"input": [["x"]]}, "input"),
        ("embed", {"dimensions": "x"}, "dimensions"),
        ("embeddings", {"prompt": 7}, "prompt"),
        ("show", {"verbose": "x"}, "verbose"),
    ],
)
def test_wrong_values_are_refused_with_the_place(endpoint: str, change: dict[str, Any], param: str | None) -> None:
    found = problem(endpoint, {**BODIES[f"/api/{endpoint}"], **change})
    assert found.param is not None
    assert found.param == param or param is None
    assert found.message.startswith(found.param)


def test_a_broken_body_still_tells_its_model_and_stream() -> None:
    parsed = call("/api/chat", {"model": "mine", "MODEL": "theirs", "stream": False, "messages": 7})
    assert parsed.problem is not None
    assert (parsed.model, parsed.stream) == ("mine", False)
    parsed = parse_call("/api/chat", b"{", POLICY)
    assert parsed.problem is not None
    assert (parsed.model, parsed.stream) == (None, True)


def test_a_call_with_a_problem_is_never_written() -> None:
    parsed = parse_call("/api/chat", b"[]", POLICY)
    with pytest.raises(InvalidRequest):
        parsed.upstream_body("m", 5)


def test_roles_are_lowered() -> None:
    assert sent("/api/chat", {"model": "m", "messages": [{"role": "SYSTEM"}]})["messages"] == [{"role": "system"}]


def test_sampling_options_pass_and_those_that_load_a_model_do_not() -> None:
    sampling = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 1,
        "min_p": 0.05,
        "typical_p": 1.0,
        "seed": 123456789012,
        "stop": ["\n", "User:"],
        "repeat_last_n": -1,
        "repeat_penalty": 1.1,
        "presence_penalty": -2,
        "frequency_penalty": 0.0,
        "num_predict": 100,
        "num_ctx": 4096,
    }
    loading = {
        "num_gpu": 99,
        "num_thread": 1,
        "num_batch": 1,
        "main_gpu": 1,
        "use_mmap": "wrong type, and dropped all the same",
        "num_keep": 5,
        "draft_num_predict": 4,
        "mirostat": 2,
        "unheard_of": {},
    }
    assert sent("/api/chat", {**CHAT, "options": {**sampling, **loading}})["options"] == sampling


def test_whole_floats_are_integers_and_num_ctx_is_capped() -> None:
    options = {"top_k": 40.0, "num_predict": 1e2, "num_ctx": 10**12}
    got = sent("/api/chat", {**CHAT, "options": options}, BodyPolicy(max_num_ctx=8192))["options"]
    assert got == {"top_k": 40, "num_predict": 100, "num_ctx": 8192}
    assert all(type(value) is int for value in got.values())
    assert sent("/api/chat", {**CHAT, "options": {"num_ctx": 0}})["options"] == {}


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        (300, 300),
        (300.5, 300.5),
        (300.0, 300),
        (99999, 1800),
        (-1, 1800),
        (-0.001, 1800),
        ("5m", 300),
        ("1h30m", 1800),
        ("2m3.5s", 123.5),
        ("100000ms", 100),
        ("+90s", 90),
        ("-1ns", 1800),
        ("-1m", 1800),
        ("9999999999999h", 1800),
        (1, 60),
        ("1ns", 60),
        (1e-300, None),
        (0, None),
        (0.0, None),
        ("0", None),
        ("0s", None),
        ("-0", None),
        ("0h0m0s", None),
    ],
)
def test_keep_alive_is_clamped_and_rewritten_and_unloading_is_refused(asked: object, written: object) -> None:
    for endpoint in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"):
        body = {**BODIES[endpoint], "keep_alive": asked}
        if written is None:
            assert problem(endpoint, body).param == "keep_alive"
        else:
            assert sent(endpoint, body)["keep_alive"] == written


def test_unloading_passes_where_the_operator_allows_it() -> None:
    policy = BodyPolicy(allow_unload=True)
    assert sent("/api/generate", {"model": "m", "keep_alive": 0}, policy)["keep_alive"] == 0
    assert sent("/api/generate", {"model": "m", "keep_alive": "1s"}, policy)["keep_alive"] == 1
    assert sent("/api/generate", {"model": "m", "keep_alive": -1}, policy)["keep_alive"] == 1800


def test_a_clamp_below_the_least_keep_alive_wins() -> None:
    assert sent("/api/chat", {**CHAT, "keep_alive": 5}, BodyPolicy(max_keep_alive_s=10.0))["keep_alive"] == 10


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max"])
def test_think_passes(think: object) -> None:
    assert sent("/api/generate", {**GENERATE, "think": think})["think"] == think


def test_format_json_passes_and_empty_is_absence() -> None:
    assert sent("/api/generate", {**GENERATE, "format": "json"})["format"] == "json"
    assert "format" not in sent("/api/generate", {**GENERATE, "format": ""})


def test_all_of_generate_passes() -> None:
    body = {
        **GENERATE,
        "suffix": "s",
        "system": "y",
        "template": "{{ .Prompt }}",
        "context": [1, 2, 3],
        "raw": False,
        "images": ["AAAA"],
        "truncate": False,
        "shift": True,
        "logprobs": True,
        "top_logprobs": 20,
        "stream": False,
    }
    assert sent("/api/generate", body) == {**body, "model": "installed:latest"}


def test_images_are_bounded_in_number_and_size_over_all_messages() -> None:
    picture = base64.b64encode(b"x" * 300).decode()
    messages = [{"role": "user", "images": [picture] * 4}] * 2
    assert sent("/api/chat", {"model": "m", "messages": messages})["messages"] == messages
    more = [*messages, {"role": "user", "images": [picture]}]
    assert problem("/api/chat", {"model": "m", "messages": more}).param == "images"
    assert problem("/api/chat", {"model": "m", "messages": messages}, BodyPolicy(max_image_bytes=2000)).param
    assert problem("/api/generate", {**GENERATE, "images": ["AAAA"] * 9}).param == "images"


def test_line_breaks_in_base64_are_taken_out() -> None:
    assert sent("/api/generate", {**GENERATE, "images": ["AA\r\nAA\n"]})["images"] == ["AAAA"]


@pytest.mark.parametrize(
    ("asked", "predict", "written"),
    [
        (None, 50, 50),
        (100, 50, 50),
        (10, 10, 10),
        (-1, 50, 50),
        (100, None, 100),
        (-1, None, -1),
        (None, None, None),
    ],
)
def test_the_granted_cap_is_written_and_without_one_the_clients_own_stays(
    asked: int | None, predict: int | None, written: int | None
) -> None:
    body = {**CHAT, "options": {"num_predict": asked, "seed": 1}}
    options = sent("/api/chat", body, predict=predict)["options"]
    assert options.get("num_predict") == written
    assert options["seed"] == 1


def test_a_cap_is_written_where_there_were_no_options_and_never_for_embeddings() -> None:
    assert sent("/api/generate", GENERATE, predict=7)["options"] == {"num_predict": 7}
    assert "options" not in sent("/api/embed", BODIES["/api/embed"], predict=7)


@pytest.mark.parametrize(
    ("asked", "seen"), [(None, None), (-1, None), (-2, None), (-77, None), (0, 1), (1, 1), (9, 9)]
)
def test_asked_predict(asked: int | None, seen: int | None) -> None:
    assert call("/api/chat", {**CHAT, "options": {"num_predict": asked}}).asked_predict == seen


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/api/chat", {"model": "m"}),
        ("/api/chat", {"model": "m", "messages": []}),
        ("/api/generate", {"model": "m"}),
        ("/api/generate", {"model": "m", "prompt": "", "system": "ignored", "images": ["AAAA"]}),
    ],
)
def test_loading_a_model_reserves_next_to_nothing(endpoint: str, body: object) -> None:
    parsed = call(endpoint, body)
    assert (parsed.problem, parsed.prompt_estimate, parsed.asked_predict) == (None, 0, 1)


def test_estimates_grow_with_all_that_the_model_reads() -> None:
    def chat(message: dict[str, Any], **more: Any) -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": "x", **message}], **more}
        return call("/api/chat", body).prompt_estimate

    least = chat({})
    assert least == 9
    assert chat({"content": "x" * 4000}) == 1008
    assert chat({"content": "\u65e5" * 4000}) == 3008
    assert chat({"thinking": "x" * 400}) == least + 100
    assert chat({"images": ["AAAA"] * 2}) == least + 2048
    assert chat({"tool_calls": [{"function": {"name": "f", "arguments": {"a": "x" * 400}}}]}) > least + 100
    assert chat({}, tools=[{"function": {"description": "x" * 400}}]) > least + 100
    assert chat({}, format={"description": "x" * 400}) > least + 100
    generate = call("/api/generate", GENERATE).prompt_estimate
    assert call("/api/generate", {**GENERATE, "context": [1] * 500}).prompt_estimate == generate + 500
    assert call("/api/generate", {**GENERATE, "system": "x" * 400}).prompt_estimate == generate + 100
    assert call("/api/embed", {"model": "m", "input": ["x"] * 100}).prompt_estimate == 300
    assert call("/api/embed", {"model": "m", "input": []}).prompt_estimate == 0
    assert call("/api/embeddings", {"model": "m", "prompt": "x" * 400}).prompt_estimate == 102


def test_whether_it_streams_and_generates() -> None:
    assert {path: (call(path, body).stream, call(path, body).generates) for path, body in BODIES.items()} == {
        "/api/chat": (True, True),
        "/api/generate": (True, True),
        "/api/embed": (False, False),
        "/api/embeddings": (False, False),
        "/api/show": (False, False),
    }
    off = call("/api/chat", {**CHAT, "stream": False})
    assert not off.stream
    assert off.reply().content_type.startswith("application/json")
    assert call("/api/chat", CHAT).reply().content_type == "application/x-ndjson"
    assert "stream" not in sent("/api/embed", {**BODIES["/api/embed"], "stream": True})


def test_a_deep_schema_is_a_400_even_where_the_policy_lets_it_deeper_than_the_stack() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"properties": {"p": schema}}
    body = {**CHAT, "tools": [{"function": {"parameters": schema}}]}
    assert "nested" in problem("/api/chat", body, BodyPolicy(max_depth=100_000)).message


def test_the_policy_follows_the_settings() -> None:
    settings = Settings(
        database_url="postgresql://x",
        redis_url="redis://x",
        ollama_url="http://x",
        max_json_depth=7,
        max_num_ctx=8,
        max_keep_alive_s=9,
        allow_unload=True,
        max_reply_bytes=10,
    )
    assert BodyPolicy.of(settings) == BodyPolicy(
        max_depth=7, max_num_ctx=8, max_keep_alive_s=9.0, allow_unload=True, max_reply_bytes=10
    )
