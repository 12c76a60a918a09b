-- Take over what nobody has renewed. What is returned is the caller's for a lease, to put it back.
-- KEYS: unacked_index. ARGV: how our tags begin, the lease in seconds, how long Kombu's own tags
-- last, when the caller renewed its own, how many to return at most.
local prefix, lease, others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call("time")
local now = time[1] + time[2] / 1000000
local found = {}
-- The caller was frozen on its way here: others may be alive.
if now - tonumber(ARGV[4]) > lease / 4 then
    return found
end
local offset, page = 0, nil
repeat
    page = redis.call("zrange", KEYS[1], "-inf", now - lease, "byscore", "withscores", "limit", offset, 500)
    for i = 1, #page, 2 do
        local is_leased = page[i]:sub(1, #prefix) == prefix
        if (is_leased or tonumber(page[i + 1]) < now - others) and #found < tonumber(ARGV[5]) then
            found[#found + 1] = page[i]
        end
    end
    offset = offset + 500
until #page < 1000 or #found == tonumber(ARGV[5])
for _, tag in ipairs(found) do
    redis.call("zadd", KEYS[1], "xx", now, tag)
end
return found
