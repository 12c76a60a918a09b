-- Claim messages whose lease has expired, and return their tags. The caller then has one lease of
-- time to put them back into their queues.
-- KEYS: unacked_index. ARGV: the prefix of our tags, the caller's lease in seconds, the timeout of
-- Kombu's own tags in seconds, the time of the caller's last renewal, the maximum number of tags.
-- After the prefix, our tags contain the lease of their holder, which may be longer than the
-- caller's.
local prefix, lease, others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call("time")
local now = time[1] + time[2] / 1000000
local found = {}
-- The caller was frozen since its last renewal, so it may claim messages of live workers.
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
