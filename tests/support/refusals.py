"""Whether a check takes what it is given."""

from pydantic import ValidationError

from mergemoe.errors import UserError


def accepts(check, *given):
    try:
        check(*given)
    except (UserError, ValidationError):
        return False
    return True
