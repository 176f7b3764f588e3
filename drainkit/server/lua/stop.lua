-- Set the kill switch; one that is there stays as it is, but for an expiry that it may have.
-- KEYS: stop; ARGV: its value
-- Returns "" if it was set now, else the type of what was there. A drainer may SETNX and GETDEL.
local stop = KEYS[1]
if redis.call('SETNX', stop, ARGV[1]) == 1 then return '' end
local kind = redis.call('TYPE', stop).ok
if kind == 'string' then redis.call('SETNX', stop, redis.call('GETDEL', stop)) end
return kind
