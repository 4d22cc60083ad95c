"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input from the user: one plain sentence that names the file, the field and the remedy.

    Commands print the sentence on standard error without a traceback and exit with 2.
    """
