-- One request again and again. After `--`: method, path, file of the body ("-" for none).
function init(args)
  local body
  if args[3] ~= '-' then
    local file = io.open(args[3], 'rb')
    body = file:read('*a')
    file:close()
  end
  wrk.method, wrk.path, wrk.body = args[1], args[2], body
  if body then wrk.headers['Content-Type'] = 'application/json' end
  local text = wrk.format()
  function request() return text end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"seconds":%.6f,"failed":%d,"p50":%.3f,"p99":%.3f}\n', summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
