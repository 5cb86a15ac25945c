"""Every error this package raises: one tree, and a leaf that imports nothing else of this package.

What a caller is told is short and constant (`DeliveryError.detail`); what a person is told, in the
log and on the page, is the exception's own message.
"""

from __future__ import annotations

from collections.abc import Iterable


class MillisHooksError(Exception):
    """The root: `except MillisHooksError` catches everything this package raises on purpose."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class ConfigError(MillisHooksError):
    """A setting is missing or wrong; the message names it, what was found and what to do."""


class RegistrationError(MillisHooksError):
    """A handler cannot be registered; the message names the function and where it stands."""


class DeliveryError(MillisHooksError):
    """This delivery is refused. `status_code` and `detail` are all the sender learns."""

    status_code = 400
    detail = "bad request"


class AuthenticationError(DeliveryError):
    """The secret is missing or wrong. The reason is for the log, never for the answer."""

    status_code = 401
    detail = "unauthorized"


class SandboxOffError(DeliveryError):
    """The call is simulated, and this service has no sandbox (`MILLIS_HOOKS_SANDBOX`)."""

    status_code = 403
    detail = "the sandbox is off"


class MethodNotAllowedError(DeliveryError):
    """The webhook was called with another method than Millis uses."""

    status_code = 405
    detail = "method not allowed"


class PayloadTooLargeError(DeliveryError):
    """The body is over `MILLIS_HOOKS_MAX_BODY_BYTES`, as sent or once decompressed."""

    status_code = 413
    detail = "too large"


class HeadTooLargeError(DeliveryError):
    """The query and the headers are larger than what is read of them."""

    status_code = 431
    detail = "query or headers too large"


class IncompleteBodyError(DeliveryError):
    """More or less of the body arrived than was announced, so nothing of it was stored."""

    status_code = 503
    detail = "the body did not arrive whole, send it again"


class TooManyBodiesError(DeliveryError):
    """Not stored: the bodies under way take all the memory there is for them. The sender has to
    send it again."""

    status_code = 503
    detail = "too much at once, send it again"


class ClientGoneError(DeliveryError):
    """The sender left before the body was complete, and gets no answer."""

    status_code = 499  # as nginx writes it down: HTTP has none


class WrongAddressError(DeliveryError):
    """The secret is right, and no webhook is at this address."""

    status_code = 404
    detail = "no webhook is at this address"


class UnknownFunctionError(DeliveryError):
    """The secret is right, and there is no function of this name."""

    status_code = 404

    def __init__(self, known: Iterable[str]) -> None:
        self.detail = f"no such function; there are: {', '.join(known) or 'none'}"
        super().__init__(f"There is n{self.detail[1:]}.")


class PayloadError(MillisHooksError):
    """These bytes are not a Millis payload. They are kept, acknowledged and shown as unparsed."""


class AnotherAgentError(PayloadError):
    """The secret belongs to another agent than the call, so nothing was made of this."""


class HandlerError(MillisHooksError):
    """A handler raised, or returned what it may not. The cause is in `__cause__`."""


class HandlerTimeoutError(HandlerError):
    """A handler took longer than its budget or its `timeout_s`."""


class StorageError(MillisHooksError):
    """The call log could not be read or written. The driver's error is in `__cause__`."""


class StorageOutageError(StorageError):
    """Nothing can be stored now: the disk is full, the file locked, read-only, damaged or gone.

    What was to be stored is not to blame, and may be stored later.
    """


class WrongFileError(StorageError):
    """The file is damaged, or was made by another program. Nothing in it has been changed."""


class MillisApiError(MillisHooksError):
    """Millis' API did not do what it was asked. Never holds the key, nor a telephone number.

    `status` is the HTTP status it answered with, and None where no answer came.
    """

    def __init__(self, message: str | None = None, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MillisKeyError(MillisApiError):
    """Millis does not accept the API key."""


class MillisNotFoundError(MillisApiError):
    """Millis knows nothing of what was asked about."""


class MillisRefusedError(MillisApiError):
    """What was asked is wrong, and is so however often it is asked."""


class MillisBusyError(MillisApiError):
    """Millis did nothing, as it is asked too much or is not there at present.

    `retry_after_s` is in how many seconds to ask again, as far as Millis said.
    """

    def __init__(self, message: str, *, status: int, retry_after_s: float | None) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class MillisUnreachableError(MillisApiError):
    """No answer came, or none that can be read.

    `may_be_done` says whether Millis may have done what it was asked, in spite of the error.
    """

    def __init__(
        self, message: str, *, may_be_done: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.may_be_done = may_be_done
