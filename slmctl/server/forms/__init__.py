"""The APIs of the server, a file each: a form reads its requests, and writes their answers."""

from __future__ import annotations

from slmctl.server.forms.chat import CHAT
from slmctl.server.forms.decisions import DECISIONS, SYSTEM_ONE
from slmctl.server.forms.request import Form
from slmctl.server.forms.responses import RESPONSES
from slmctl.server.forms.text import TEXT

FORMS: tuple[Form, ...] = (CHAT, TEXT, RESPONSES, DECISIONS, SYSTEM_ONE)
# paths of questions, each with the option that holds it
QUESTIONS = {form.path: form.question for form in FORMS}
