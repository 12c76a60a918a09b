-- Renew leases.
-- KEYS: unacked_index. ARGV: delivery tags.
-- Returns the time by the clock of Redis, and the tags that the caller doesn't hold any more.
local time = redis.call("time")
local now = time[1] + time[2] / 1000000
local lost = {}
for _, tag in ipairs(ARGV) do
    if redis.call("zscore", KEYS[1], tag) then
        redis.call("zadd", KEYS[1], "xx", now, tag)
    else
        lost[#lost + 1] = tag
    end
end
return {string.format("%.6f", now), lost}
