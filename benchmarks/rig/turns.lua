-- Push, pop, push, pop …, the pop for a queue that was pushed to 64 pushes ago: of 50 requests under way, none is
-- that old. After `--`: path of the push, path of the pop (each with %d for the number of the queue, or none), file of
-- the body, first number.
function init(args)
  local file = io.open(args[3], 'rb')
  local body = file:read('*a')
  file:close()
  local host = wrk.headers['Host'] or (wrk.host .. ':' .. wrk.port)
  local push = 'PUT ' .. args[1] .. ' HTTP/1.1\r\nHost: ' .. host ..
    '\r\nContent-Type: application/json\r\nContent-Length: ' .. #body .. '\r\n\r\n' .. body:gsub('%%', '%%%%')
  local pop = 'GET ' .. args[2] .. ' HTTP/1.1\r\nHost: ' .. host .. '\r\n\r\n'
  local first, n, popping = tonumber(args[4]), tonumber(args[4]), false
  function request()
    if popping and n > first + 64 then
      popping = false
      return pop:format(n - 64)
    end
    n, popping = n + 1, true
    return push:format(n)
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"seconds":%.6f,"failed":%d,"p50":%.3f,"p99":%.3f}\n', summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
