-- Take over what nobody has renewed. What is returned is the caller's for a lease, to put it back.
-- KEYS: unacked_index. ARGV: how our tags begin, the lease in seconds, how long Kombu's own tags
-- last, when the caller renewed its own, how many to return at most. Our tags go on with the lease
-- of their holder, which may be longer than the caller's.
local prefix, lease, others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call("time")
local now = time[1] + time[2] / 1000000
local found = {}
-- The caller was frozen on its way here: others may be alive.
if now - tonumber(ARGV[4]) > lease / 4 then
    return found
end
local function lasts(tag)
    if tag:sub(1, #prefix) ~= prefix then
        return others
    end
    return tonumber(tag:match("^(%d+)/", #prefix + 1)) or lease
end
local offset, page = 0, nil
repeat
    page = redis.call("zrange", KEYS[1], "-inf", now - lease, "byscore", "withscores", "limit", offset, 500)
    for i = 1, #page, 2 do
        if tonumber(page[i + 1]) < now - lasts(page[i]) and #found < tonumber(ARGV[5]) then
            found[#found + 1] = page[i]
        end
    end
    offset = offset + 500
until #page < 1000 or #found == tonumber(ARGV[5])
for _, tag in ipairs(found) do
    redis.call("zadd", KEYS[1], "xx", now, tag)
end
return found
