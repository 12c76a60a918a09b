-- Claim a key of a client for one request. Returns what becomes of the request, and the id of its task.
-- KEYS: the record of the key, the lock of the request that runs
-- ARGV: fingerprint of the request, id for a new task, seconds that the record is kept, seconds of the lock
local fingerprint, task_id, is_sent = unpack(redis.call('HMGET', KEYS[1], 'fingerprint', 'task_id', 'sent'))
local is_new = not fingerprint
if is_new then
    task_id = ARGV[2]
    redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'task_id', task_id)
    redis.call('EXPIRE', KEYS[1], ARGV[3])
elseif fingerprint ~= ARGV[1] then
    return {'other', ''}
end
if is_sent then
    return {'sent', task_id}
end
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[4]) then
    return {is_new and 'new' or 'again', task_id}
end
return {'busy', ''}
