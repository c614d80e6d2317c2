"""What a person sees: text from others never passes for our own."""

import pytest

from jax_robust_kd.runtime import console


@pytest.mark.parametrize(
  'text, shown',
  [
    ('photos/été', 'photos/été'),
    ('\x1b[31mred', '\\x1b[31mred'),
    ('a\nstopped: b', 'a\\nstopped: b'),
    ('tab\tbell\x07', 'tab\\tbell\\x07'),
  ],
)
def test_control_characters_are_visible(text, shown):
  assert console.printable(text) == shown


def test_a_name_is_neither_markup_nor_an_emoji(capsys):
  console.say('folder [/red] and :fire: and \x1b[2J')
  assert capsys.readouterr().out == 'folder [/red] and :fire: and \\x1b[2J\n'
  console.table('of [/red]', ['', 'x'], [['[bold]a', ':fire:']])
  out = capsys.readouterr().out
  assert 'of [/red]' in out and '[bold]a' in out and ':fire:' in out
