-- Put a message into a queue, and wake an idle worker.
-- KEYS: queue, list that idle workers wait for. ARGV: message.
redis.call("lpush", KEYS[1], ARGV[1])
if redis.call("exists", KEYS[2]) == 0 then redis.call("lpush", KEYS[2], "") end
