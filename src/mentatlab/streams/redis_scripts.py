"""What runs inside Redis: each script is one step that nothing comes between.

No rule of streams stands here. `COMMIT` carries out what was decided outside if what the decision
was made on is still so; the others read.

Keys of a run, all with the hash tag `{run}`: its hash (`run`, `lane:ID`, `place:[NODE,PIN]`), and
with these endings `:order` (a stream: rseq → lane and sequence), `:lanes` (a list of stream ids),
`:records:ID` (a stream: sequence → record), `:producers:ID` (a hash). Hash values begin with the 16
characters of the call that wrote them. `:news` is the run's channel.
"""

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    source: str
    sha: str


def _script(source: str) -> Script:
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


NEWS_BYTES = 64 * 1024
"""Records of one call that are told in full; of more than that only who has some."""

COMMIT = _script(
    """
    -- KEYS: the run's hash, order, lanes, channel.
    -- ARGV: the call's id, the channel's word for "ask the log", then counted lists:
    --   checks (lane of producers or "", field, call that it was read from), puts (lane, field,
    --   data), lanes that are new, records (lane, sequence, rseq or "", facts, record),
    --   drops (lane, sequence, rseq or ""), lanes whose records go
    -- Gives 1, or when a check fails the values of all that was to be checked.
    local run, at = KEYS[1], 2
    local function take() at = at + 1 return ARGV[at] end
    local function count() return tonumber(take()) end
    local function hash(lane) return lane == '' and run or run .. ':producers:' .. lane end
    local function records(lane) return run .. ':records:' .. lane end
    local found, same = {}, true
    for i = 1, count() do
      found[i] = redis.call('HGET', hash(take()), take())
      same = string.sub(found[i] or '', 1, 16) == take() and same
    end
    if not same then return found end
    local puts = at
    local skipped = count()
    at = at + 3 * skipped
    for _ = 1, count() do redis.call('RPUSH', KEYS[3], take()) end
    local told, bytes = {}, 0
    for i = 1, count() do
      local lane, sequence, rseq, facts, record = take(), take(), take(), take(), take()
      redis.call('XADD', records(lane), sequence .. '-0', 'f', facts, 'r', record)
      if rseq ~= '' then
        redis.call('XADD', KEYS[2], rseq .. '-0', 'f', sequence .. ' ' .. facts, 'l', lane)
      end
      told[i], bytes = record, bytes + #record
    end
    for _ = 1, count() do
      local lane, sequence, rseq = take(), take(), take()
      redis.call('XDEL', records(lane), sequence .. '-0')
      if rseq ~= '' then redis.call('XDEL', KEYS[2], rseq .. '-0') end
    end
    for _ = 1, count() do
      local lane = take()
      redis.call('UNLINK', records(lane), hash(lane))
    end
    at = puts
    for _ = 1, count() do redis.call('HSET', hash(take()), take(), ARGV[1] .. take()) end
    if #told > 0 and bytes <= NEWS_BYTES then
      local size = struct.pack('>I4', #told)
      redis.call('PUBLISH', KEYS[4], '\\146\\144\\221' .. size .. table.concat(told))
    elseif ARGV[2] ~= '' then
      redis.call('PUBLISH', KEYS[4], '\\146' .. ARGV[2] .. '\\144')
    end
    return 1
    """.replace("NEWS_BYTES", str(NEWS_BYTES))
)

READ = _script(
    """
    -- KEYS: the run's hash, a lane's records. ARGV: the lane's field, first sequence, most records,
    -- most bytes. Gives the lane and its records.
    local found, from = {}, ARGV[2]
    local most, room = tonumber(ARGV[3]), tonumber(ARGV[4])
    while #found < most do
      local some = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', math.min(16, most - #found))
      for _, each in ipairs(some) do
        room = room - tonumber(string.match(each[2][2], '^%d+'))
        if room < 0 and #found > 0 then most = 0 break end
        found[#found + 1] = each[2][4]
        from = '(' .. each[1]
      end
      if #some == 0 then break end
    end
    return {redis.call('HGET', KEYS[1], ARGV[1]), found}
    """
)

READ_RUN = _script(
    """
    -- KEYS: the run's hash, its order. ARGV: first rseq, most records, most bytes.
    -- Gives the run and its records.
    local found, from = {}, ARGV[1]
    local most, room = tonumber(ARGV[2]), tonumber(ARGV[3])
    while #found < most do
      local some = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', math.min(64, most - #found))
      for _, each in ipairs(some) do
        local sequence = string.match(each[2][2], '^%d+') .. '-0'
        local lane = KEYS[1] .. ':records:' .. each[2][4]
        local record = redis.call('XRANGE', lane, sequence, sequence)[1]
        if record then
          room = room - tonumber(string.match(record[2][2], '^%d+'))
          if room < 0 and #found > 0 then most = 0 break end
          found[#found + 1] = record[2][4]
        end
        from = '(' .. each[1]
      end
      if #some == 0 then break end
    end
    return {redis.call('HGET', KEYS[1], 'run'), found}
    """
)

FACTS = _script(
    """
    -- KEYS: a lane's records. ARGV: first sequence, most of them. Gives ids and facts in turn.
    local found = {}
    for _, each in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
      found[#found + 1] = each[1]
      found[#found + 1] = each[2][2]
    end
    return found
    """
)

AT_TIME = _script(
    """
    -- KEYS: a lane's records, or a run's order. ARGV: Unix ms, which word of the facts has it.
    -- Gives the position before the first that is not older; -1 when all are.
    local function position(each) return tonumber(string.match(each[1], '^%d+')) end
    local function time(each)
      local words = {}
      for word in string.gmatch(each[2][2], '%d+') do words[#words + 1] = word end
      return tonumber(words[tonumber(ARGV[2])])
    end
    local function from(at) return redis.call('XRANGE', KEYS[1], at, '+', 'COUNT', 1)[1] end
    local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    if not last then return -1 end
    local low, high = 1, position(last) + 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      local each = from(middle)
      if time(each) >= tonumber(ARGV[1]) then high = middle else low = position(each) + 1 end
    end
    local first = from(low)
    return first and position(first) - 1 or -1
    """
)

LANES = _script(
    """
    -- KEYS: the run's hash, its lanes. Gives the lanes in order of creation.
    local found = {}
    for i, lane in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
      found[i] = redis.call('HGET', KEYS[1], 'lane:' .. lane)
    end
    return found
    """
)

DELETE = _script(
    """
    -- KEYS: the run's hash, order, lanes, channel. ARGV: the run's id.
    -- Gives the ids of its lanes and its own.
    local ids = redis.call('LRANGE', KEYS[3], 0, -1)
    for _, lane in ipairs(ids) do
      redis.call('UNLINK', KEYS[1] .. ':records:' .. lane, KEYS[1] .. ':producers:' .. lane)
    end
    redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
    ids[#ids + 1] = ARGV[1]
    redis.call('PUBLISH', KEYS[4], '\\146' .. cmsgpack.pack(ids) .. '\\144')
    return ids
    """
)

RECOGNISE = _script(
    """
    -- KEYS: what is known of this data set, its channel. ARGV: the process of the server; the
    -- replication id of the master that it took over from, or ""; 1 if a new process may have lost
    -- records; an epoch for a new data set. Gives the epoch.
    local known = redis.call('HMGET', KEYS[1], 'epoch', 'process', 'origin')
    local epoch = tonumber(known[1] or ARGV[4])
    local promoted = ARGV[2] ~= '' and ARGV[2] ~= known[3]
    local restarted = ARGV[1] ~= known[2] and ARGV[3] == '1'
    if known[1] and (promoted or restarted) then
      epoch = epoch + 1
      redis.call('PUBLISH', KEYS[2], 'epoch')
    end
    redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch),
      'process', ARGV[1], 'origin', ARGV[2])
    return epoch
    """
)

RAISE = _script(
    """
    -- KEYS: what is known of this data set, its channel. ARGV: the epoch that is over.
    -- Gives the epoch.
    local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch'))
    if epoch == tonumber(ARGV[1]) then
      epoch = epoch + 1
      redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch))
      redis.call('PUBLISH', KEYS[2], 'epoch')
    end
    return epoch
    """
)

ALL = (COMMIT, READ, READ_RUN, FACTS, AT_TIME, LANES, DELETE, RECOGNISE, RAISE)
