"""Chat templates that write tool calls in the ways of known families,
shortened to what that takes; and two tools.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from slmctl.task import contract
from slmctl.task.contract import Task

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n<tools>' }}{% for t in tools %}{{ '\\n' + t | tojson }}{% endfor %}{{ "
    "'\\n</tools><|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + "
    "'<|im_end|>\\n' }}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    # as Qwen3, not where it opens
    "{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if m.content or not loop.first %}{{ '\\n' }}{% endif %}"
    '{{ \'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif "
    "%}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] "
    "| trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}"
    "{% if tools %}{% set question = messages[0]['content'] | trim %}{% set messages = "
    "messages[1:] %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\\n\\nGiven the following functions, respond with "
    "a JSON.\\n' }}"
    "{% for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}{{ question + "
    "'<|eot_id|>' }}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only one call') }}{% endif %}"
    '{{ \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\' + '
    "m.tool_calls[0].function.name + '\", ' }}"
    "{{ '\"parameters\": ' }}{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | "
    "trim + '<|eot_id|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% "
    "endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{% set out = "
    "c.function | tojson %}"
    "{{ out[:-1] }}{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('nine "
    "letters') }}{% endif %}"
    "{{ ', \"id\": \"' + c.id + '\"}' + (']' if loop.last else ', ') }}{% endfor %}{{ eos_token }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ARGS = (  # as later tokenizers of that family write it
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{% endfor "
    "%}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
TEXT = (  # arguments as a text, and content null
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<|user|>' + "
    "m.content }}"
    "{% elif m.content is none %}{{ '<|assistant|>' }}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```</call>' }}{% "
    "endfor %}"
    "{{ eos_token }}{% else %}{{ '<|assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
XML = (  # arguments that are no JSON
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' + "
    "m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}{% for k, v in "
    "c.function.arguments.items() %}"
    "{{ '<arg>' + k + '=' + v | string + '</arg>' }}{% endfor %}</call>{% endfor %}{{ '<|end|>' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "book_room",
            "description": "Book a room.",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {"enum": ["Birch", "Oak"]},
                    "people": {"type": "integer", "minimum": 1, "maximum": 40},
                    "note": {"type": "string", "maxLength": 12},
                },
                "required": ["room"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "book_room_list", "description": "List the rooms.", "parameters": {}},
    },
)


def task_of(
    template: str, *, end: str = "<|im_end|>", special_tokens: tuple[str, ...] = (), **fields: Any
) -> Task:
    """A task of calls for a base with this template, whose form is found in it."""
    task = Task(
        "call",
        template,
        end,
        tools=TOOLS,
        bos_token="<s>",
        eos_token="</s>",
        special_tokens=special_tokens,
    )
    return dataclasses.replace(task, call_form=contract.call_form_of(task), **fields)
