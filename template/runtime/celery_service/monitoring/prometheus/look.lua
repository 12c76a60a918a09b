-- Return the length of each list, and when the message that is taken next was sent and is due, as
-- Kombu wrote it. Quotes in other texts of the message are escaped, and its body is base64.
-- KEYS: the lists.
local found = {}
for i, key in ipairs(KEYS) do
    local message = redis.call("lindex", key, -1) or ""
    found[i] = {
        redis.call("llen", key),
        string.match(message, '"sent_at": ?([%d.]+)') or "",
        string.match(message, '"eta": ?"([^"]+)"') or "",
    }
end
return found
