"""Other servers that do the same work, to measure beside ours.

Every hub takes a JSON record from a publisher's connection, gives it the next sequence of its
stream, appends it to a list in memory (the log) and sends it, as JSON with the sequence, to the
stream's subscribers. `WS /pub/<stream>`, `WS /sub/<stream>`, `GET /sse/<stream>`. NATS and Redis
do less: bytes from a publisher to subscribers, no JSON, no sequence, no log.
"""
