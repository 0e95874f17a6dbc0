"""What travels at run time, for every process and language: pins, media references, stream
records, agent events, the stdio codec, tokens, errors.

Pure: no asyncio, sockets, files or databases; msgspec only.
"""
