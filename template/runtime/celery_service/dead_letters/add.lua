-- Keep a record, and drop the oldest ones beyond the limits, in one step.
-- KEYS: records by id, ids by time, the number of records and of their bytes, the number of records
-- ever added by reason.
-- ARGV: id, time, record, reason; the time before which records are too old, the maximum number of
-- records, the maximum number of bytes.
-- Returns how many records were dropped because of their age, their number and their bytes.
local records, times, size = KEYS[1], KEYS[2], KEYS[3]
local id, time, record = ARGV[1], ARGV[2], ARGV[3]
local too_old, max_count, max_bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local counted, bytes = unpack(redis.call("hmget", size, "count", "bytes"))
bytes = tonumber(bytes)
-- Workers of an older version don't update these numbers. If they differ, count all records again.
if tonumber(counted) ~= redis.call("hlen", records) then
    bytes = 0
    for _, each in ipairs(redis.call("hkeys", records)) do
        bytes = bytes + redis.call("hstrlen", records, each)
    end
end

bytes = bytes - redis.call("hstrlen", records, id) + #record
if redis.call("hset", records, id, record) == 1 then
    redis.call("hincrby", KEYS[4], ARGV[4], 1)
end
redis.call("zadd", times, time, id)

local dropped = {0, 0, 0}
repeat
    local oldest, its_time = unpack(redis.call("zrange", times, 0, 0, "withscores"))
    local why = oldest and (
        (tonumber(its_time) < too_old and 1)
        or (redis.call("zcard", times) > max_count and 2)
        or (bytes > max_bytes and 3)
    )
    if why then
        bytes = bytes - redis.call("hstrlen", records, oldest)
        redis.call("hdel", records, oldest)
        redis.call("zrem", times, oldest)
        dropped[why] = dropped[why] + 1
    end
until not why
redis.call("hset", size, "count", redis.call("hlen", records), "bytes", bytes)
return dropped
