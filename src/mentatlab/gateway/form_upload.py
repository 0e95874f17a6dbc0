"""One file and a few fields of a `multipart/form-data` body, parsed while it arrives.

The file's bytes are handed on as they come: never held whole, never written twice.
"""

from collections.abc import AsyncIterator, Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mentatlab.protocol.errors import Code, Invalid

_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 64 * 1024


class FormUpload:
    """`await open()` reads up to the file; then `filename`, `content_type` and `fields` are known
    and iterating gives the file's bytes. Errors are `Invalid(FORM_INVALID)`.

    `settings` are the fields that say how to treat the file: they must stand before it.
    """

    def __init__(
        self, content_type: str, body: AsyncIterator[bytes], *, settings: Collection[str]
    ) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise _bad("the Content-Type has no boundary", "let your HTTP client set it")
        self.fields: dict[str, str] = {}
        self.filename: str = ""
        self.content_type: str = ""
        self._body = body
        self._settings = settings
        self._has_file = self._in_file = self._complete = False
        self._headers: dict[str, bytes] = {}
        self._name, self._value = b"", b""
        self._field = ""
        self._fields_seen = 0
        self._data = bytearray()
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _bad(str(error)) from error

    async def open(self) -> "FormUpload":
        async for data in self._body:
            self._feed(data)
            if self._has_file:
                return self
        raise _bad("the form has no file", "send exactly one part with a filename")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._take():
            yield piece
        async for data in self._body:
            self._feed(data)
            for piece in self._take():
                yield piece
        if not self._complete:
            raise _bad("the form ends before its last boundary")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad(str(error)) from error

    def _take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # --- what the parser calls

    def _part_begin(self) -> None:
        self._headers = {}
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._in_file = b"filename" in options
        if self._in_file:
            self._begin_file(options[b"filename"])
        else:
            self._begin_field(options.get(b"name", b"").decode(errors="replace"))

    def _begin_file(self, filename: bytes) -> None:
        if self._has_file:
            raise _bad("the form has more than one file", "send one request a file")
        self._has_file = True
        self.filename = filename.decode(errors="replace")
        self.content_type = self._headers.get("content-type", b"").decode("latin-1")

    def _begin_field(self, name: str) -> None:
        if self._has_file and name in self._settings:
            raise _bad(
                f"the field {name!r} stands after the file",
                "put fields before the file, or into the query string",
            )
        self._fields_seen += 1
        if self._fields_seen > _MAX_FIELDS:
            raise _bad(f"the form has more than {_MAX_FIELDS} fields")
        self._field = name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])
            return
        self._data += data[start:end]
        if len(self._data) > _MAX_FIELD_BYTES:
            raise _bad(f"the field {self._field!r} has more than {_MAX_FIELD_BYTES} bytes")

    def _part_end(self) -> None:
        if not self._in_file:
            self.fields[self._field] = self._data.decode(errors="replace")

    def _end(self) -> None:
        self._complete = True


def _bad(why: str, hint: str = "") -> Invalid:
    return Invalid(Code.FORM_INVALID, why, hint=hint)
