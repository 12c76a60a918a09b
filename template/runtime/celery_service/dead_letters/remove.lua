-- Forget records, unless there is a newer one of the same id by now.
-- KEYS: records by id, ids by time, how many records were counted and how many bytes they have.
-- ARGV: the id and the time of each.
for i = 1, #ARGV, 2 do
    local id, time = ARGV[i], redis.call("zscore", KEYS[2], ARGV[i])
    if time and tonumber(time) == tonumber(ARGV[i + 1]) then
        redis.call("hincrby", KEYS[3], "bytes", -redis.call("hstrlen", KEYS[1], id))
        redis.call("hincrby", KEYS[3], "count", -redis.call("hdel", KEYS[1], id))
        redis.call("zrem", KEYS[2], id)
    end
end
