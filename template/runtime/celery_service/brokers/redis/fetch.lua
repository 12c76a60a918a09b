-- Remove a message from its queue and store it as unacknowledged, in one step.
-- KEYS: unacked, unacked_index, queues. ARGV: delivery tag, names of the queues as JSON.
-- The values of `unacked` have Kombu's format.
local time = redis.call("time")
for i = 3, #KEYS do
    local message = redis.call("rpop", KEYS[i])
    if message then
        redis.call("zadd", KEYS[2], time[1] + time[2] / 1000000, ARGV[1])
        redis.call("hset", KEYS[1], ARGV[1], "[" .. message .. ',"",' .. ARGV[i - 1] .. "]")
        return {i - 3, message}
    end
end
