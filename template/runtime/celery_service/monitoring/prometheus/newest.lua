-- Keep the latest time for each queue, and return those of all queues.
-- KEYS: queues by time. ARGV: queue, time, queue, time, …
for i = 1, #ARGV, 2 do
    local known = redis.call("zscore", KEYS[1], ARGV[i])
    if not known or tonumber(known) < tonumber(ARGV[i + 1]) then
        redis.call("zadd", KEYS[1], ARGV[i + 1], ARGV[i])
    end
end
redis.call("expire", KEYS[1], 604800)
return redis.call("zrange", KEYS[1], 0, -1, "withscores")
