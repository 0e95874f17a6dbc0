#!/bin/sh
# A stream with curl alone: open, publish, follow, read.
set -eu

server=${MENTATLAB_SERVER:-http://127.0.0.1:7070}
set -- --silent --show-error --fail-with-body ${MENTATLAB_KEY:+--header "Authorization: Bearer $MENTATLAB_KEY"}

# open; the same Idempotency-Key would open the same stream
id=$(curl "$@" --json '{"agent_id": "shell", "pin_name": "out"}' "$server/api/v1/streams/init" |
  sed 's/.*"stream_id":"\([^"]*\)".*/\1/')
stream=$server/api/v1/streams/$id
echo "$id"

# follow it as it grows; -N shows each event at once
curl "$@" --no-buffer "$stream/sse" &

# publish: a record a line. Producer-… make it safe to send again: the second time changes nothing
for _ in 1 2; do
  printf '%s\n' '{"data": "hello"}' '{"data": {"celsius": 21.5}}' |
    curl "$@" --header 'Content-Type: application/x-ndjson' \
      --header 'Producer-Id: shell' --header 'Producer-Seq: 1' --data-binary @- "$stream/records"
  echo
done

# any other content type is one binary record
printf '\211PNG' | curl "$@" --header 'Content-Type: image/png' --data-binary @- "$stream/records?key=1"
echo

# the end; a stream without one is not complete
curl "$@" --json '{"type": "stream_end"}' "$stream/records"
echo
wait # the follower ends by itself

# read: all of the log, its last two records, the bytes of the binary one
curl "$@" "$stream/log"
curl "$@" "$stream/log?from=-2"
curl "$@" "$stream/records/4" | od -c | head -n 1
