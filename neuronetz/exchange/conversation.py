"""What the prompt log is told of an exchange: nothing, unless the key opted in and the model began to answer."""

from collections.abc import Callable

from neuronetz.audit.prompts import PromptLog, PromptRow
from neuronetz.dialects.call import Call, Reply
from neuronetz.dialects.transcript import Transcript
from neuronetz.policy import Principal


class Conversation:
    """One exchange's prompt and completion. Without the key's opt-in it gathers and writes nothing.

    ``taken``, where it is not None, is to be called when what the reader has let pass so far was handed to
    the client's connection.
    """

    def __init__(self, prompts: PromptLog, principal: Principal, request_id: str) -> None:
        self._prompts = prompts
        self._key_id = principal.key_id
        self._request_id = request_id
        self._transcript = Transcript(prompts.max_bytes) if principal.log_prompts else None
        self._call: Call | None = None
        self.taken: Callable[[], None] | None = (
            self._transcript.delivered if self._transcript is not None else None
        )

    def reply(self, call: Call) -> Reply:
        """A reader of the call's reply, which is listened to where the key opted in."""
        return call.reply(self._transcript)

    def begun(self, call: Call) -> None:
        """Note that the model began to answer: before that there is nothing to log, and nothing is charged."""
        self._call = call

    def close(self) -> None:
        """Hand the row over, once the client has been answered. Synchronous."""
        call, transcript = self._call, self._transcript
        if call is None or transcript is None:
            return
        prompt, completion = call.prompt_text(self._prompts.max_bytes), transcript.excerpt()
        # Merely loading a model asks and answers nothing.
        if prompt.text or completion.text:
            self._prompts.submit(
                PromptRow(
                    request_id=self._request_id,
                    key_id=self._key_id,
                    prompt=prompt.text,
                    completion=completion.text,
                    prompt_truncated=prompt.truncated,
                    completion_truncated=completion.truncated,
                )
            )
