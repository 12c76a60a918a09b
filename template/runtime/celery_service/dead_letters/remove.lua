-- Remove records, except those that a newer record with the same id has replaced.
-- KEYS: records by id, ids by time, the number of records and of their bytes.
-- ARGV: the id and the time of each record.
for i = 1, #ARGV, 2 do
    local id, time = ARGV[i], redis.call("zscore", KEYS[2], ARGV[i])
    if time and tonumber(time) == tonumber(ARGV[i + 1]) then
        redis.call("hincrby", KEYS[3], "bytes", -redis.call("hstrlen", KEYS[1], id))
        redis.call("hincrby", KEYS[3], "count", -redis.call("hdel", KEYS[1], id))
        redis.call("zrem", KEYS[2], id)
    end
end
