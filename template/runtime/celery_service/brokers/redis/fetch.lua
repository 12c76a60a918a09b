-- Take a message and write down who has it, in one step.
-- KEYS: unacked, unacked_index, queues. ARGV: delivery tag, names of the queues as JSON.
-- The form of `unacked` is Kombu's. What isn't a message is put into one, byte by byte, so that the
-- worker can make a dead letter of it.
local time = redis.call("time")
for i = 3, #KEYS do
    local message = redis.call("rpop", KEYS[i])
    if message then
        local is_json, parts = pcall(cjson.decode, message)
        if not (is_json and type(parts) == "table" and type(parts.properties) == "table") then
            local text = cjson.encode(message):gsub("[\128-\255]", function(byte)
                return string.format("\\u%04x", byte:byte())
            end)
            message = '{"body":' .. text .. ',"content-type":"application/data","properties":'
                .. '{"body_encoding":"bytes","delivery_info":{"exchange":"","routing_key":'
                .. ARGV[i - 1] .. "}}}"
        end
        redis.call("zadd", KEYS[2], time[1] + time[2] / 1000000, ARGV[1])
        redis.call("hset", KEYS[1], ARGV[1], "[" .. message .. ',"",' .. ARGV[i - 1] .. "]")
        return {i - 3, message}
    end
end
